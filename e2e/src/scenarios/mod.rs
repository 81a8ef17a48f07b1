// SPDX-License-Identifier: Apache-2.0
//! What must hold besides the story: other protocols, load, mistakes and mishaps.

mod clients;
mod comings;
mod containers;
mod cores;
mod detached;
mod health;
mod idle;
mod mistakes;
mod moves;
mod names;
mod outside;
mod services;
mod shares;
mod stacks;
mod superframes;
mod tenants;
mod threats;
mod tracing;
mod traffic;
mod unowned;
pub(crate) mod views;

use crate::Chapter;

/// Every scenario.
pub const SCENARIOS: &[Chapter] = &[
    Chapter {
        title: "A damaged manifest is refused as a whole",
        name: "a_bad_manifest_leaves_the_last_good_policy_in_force",
        run: mistakes::damaged_manifest,
    },
    Chapter { title: "A rule in audit mode only marks", name: "audit_mode_only_marks", run: mistakes::audit },
    Chapter {
        title: "A machine that uses an address of its own choosing gets nowhere",
        name: "spoofed_addresses_go_nowhere",
        run: mistakes::spoofed_address,
    },
    Chapter {
        title: "IPv6 and UDP are judged like TCP",
        name: "ipv6_and_udp_are_judged",
        run: traffic::protocols,
    },
    Chapter { title: "Large frames arrive whole", name: "bulk_data_arrives_whole", run: traffic::bulk },
    Chapter {
        title: "Datagrams of one call are one frame where both cards take that, and cut where not, under a newer QEMU",
        name: superframes::NAME,
        run: superframes::run,
    },
    Chapter {
        title: "Many short connections in a row",
        name: "every_one_of_many_connections_is_attributed",
        run: traffic::many,
    },
    Chapter {
        title: "One of two servers does not keep up",
        name: "whoever_does_not_accept_gets_no_new_connections",
        run: health::stalled,
    },
    Chapter {
        title: "One of two servers listens and cannot be reached",
        name: "checks_leave_out_whom_calls_would_not_reach",
        run: health::checked,
    },
    Chapter {
        title: "Two services share a card that is limited",
        name: "services_get_their_shares_of_a_limited_card",
        run: shares::run,
    },
    Chapter {
        title: "Calls from one tenant to a service of another",
        name: "both_tenants_decide_about_calls_between_them",
        run: tenants::run,
    },
    Chapter {
        title: "A third machine gets copies of what two others say",
        name: "a_collector_gets_copies",
        run: services::mirror,
    },
    Chapter {
        title: "A flow policy sends calls to another instance",
        name: "another_instance_answers",
        run: services::redirect,
    },
    Chapter {
        title: "A collector is told of traced calls: who called whom, which endpoint was chosen and why, and when",
        name: "a_collector_is_told_of_traced_calls",
        run: tracing::run,
    },
    Chapter {
        title: "Programs in containers are judged like others",
        name: "containers_behind_translated_addresses_are_attributed",
        run: containers::masquerade,
    },
    Chapter {
        title: "Rules name containers and users",
        name: "containers_and_users_are_told_apart",
        run: containers::selectors,
    },
    Chapter {
        title: "A kernel speaks for itself, without a socket",
        name: "what_no_socket_sends_is_unattributed",
        run: unowned::run,
    },
    Chapter {
        title: "A machine loses its power, its VMM's successor breaks off, and it comes back",
        name: "a_machine_dies_and_comes_back",
        run: comings::power_cut,
    },
    Chapter { title: "A machine is reset while it sends", name: "a_machine_is_reset", run: comings::reset },
    Chapter {
        title: "A machine is added and removed while all others run; its VMM listens and the daemon connects",
        name: "a_machine_joins_and_leaves",
        run: comings::join_and_leave,
    },
    Chapter {
        title: "An open connection whose ends move between poll cores, of which successors have more and fewer",
        name: "ports_move_between_cores",
        run: cores::run,
    },
    Chapter {
        title: "Both ends of an open connection move to another daemon and back, while they run",
        name: "machines_move_with_their_connections",
        run: moves::migrate,
    },
    Chapter {
        title: "Command lines, namespaces, processor time and round-trip times are the guest's own",
        name: "views_of_ram_equal_the_guests_own",
        run: views::run,
    },
    Chapter {
        title: "Names are asked for in all ways, those of the mesh and others",
        name: "names_are_answered_however_one_asks",
        run: names::run,
    },
    Chapter {
        title: "Debian's own clients find their servers by name, on both kernels and over both families",
        name: "debians_clients_reach_their_servers_by_name",
        run: clients::run,
    },
    Chapter {
        title: "Tenants with equal addresses reach the world outside, and it reaches what they publish",
        name: "tenants_reach_the_outside",
        run: outside::run,
    },
    Chapter {
        title: "A guest's RAM in a file, live or dumped, is as good as the guest for all that needs no frames",
        name: "a_file_of_ram_shows_what_the_guest_does",
        run: detached::run,
    },
    Chapter {
        title: "Kernels that hide and hook are found out, and busy ones are not suspected",
        name: "threats_in_a_guests_kernel_are_found",
        run: threats::run,
    },
    Chapter { title: "With nothing to do the daemon rests", name: "an_idle_daemon_rests", run: idle::run },
];
