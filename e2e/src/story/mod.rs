// SPDX-License-Identifier: Apache-2.0
//! The shop's story in twelve chapters: what the demo tells, and what must hold first of all.

mod addresses;
mod edits;
mod identity;
mod limit;
mod names;
pub(crate) mod processes;
mod restart;
pub(crate) mod services;
pub(crate) mod why;

use crate::Chapter;
pub(crate) use why::meshctl;

/// The chapters in their order.
pub const STORY: &[Chapter] = &[
    Chapter {
        title: "Four machines of two tenants, no agent in any; each got its address from the switch",
        name: "addresses_come_from_the_switch",
        run: addresses::run,
    },
    Chapter {
        title: "Each machine's processes, read from its RAM, are what the machine itself shows",
        name: "processes_in_ram_equal_the_guests_own",
        run: processes::run,
    },
    Chapter {
        title: "In acme/web, /usr/bin/storefront may call the API; another program there may not",
        name: "a_process_is_refused_on_its_first_syn",
        run: identity::storefront_and_intruder,
    },
    Chapter {
        title: "In acme/api, only /usr/bin/orders may reach the database, a real Redis in acme/db",
        name: "only_orders_reach_the_database",
        run: identity::orders_and_database,
    },
    Chapter {
        title: "globex reaches nothing of acme, although it shares an address with it",
        name: "tenants_never_meet",
        run: identity::tenants,
    },
    Chapter {
        title: "A rule is edited while connections are open",
        name: "an_edit_resets_what_it_denies_within_100_ms",
        run: edits::run,
    },
    Chapter {
        title: "`meshctl why` explains an allowed and a denied flow",
        name: "why_explains_both_verdicts",
        run: why::run,
    },
    Chapter {
        title: "A service of two versions: calls are spread by weights, and follow the processes that listen",
        name: "calls_are_spread_and_follow_the_processes",
        run: services::canary,
    },
    Chapter {
        title: "Two versions of one service, each for a part of the shop; the other one does not exist",
        name: "each_part_sees_its_own_version",
        run: services::versions,
    },
    Chapter {
        title: "One name, two levels: whoever asks is led to the innermost that has it for him",
        name: "one_name_leads_each_to_what_is_innermost_for_him",
        run: names::run,
    },
    Chapter {
        title: "A process is held to a rate, as it finds itself, and nothing is dropped",
        name: "a_limit_holds_a_process_to_its_rate_and_drops_nothing",
        run: limit::run,
    },
    Chapter {
        title: "The daemon is killed under traffic and started again",
        name: "connections_outlive_the_daemon",
        run: restart::run,
    },
];
