// SPDX-License-Identifier: Apache-2.0
//! The compiled answer equals a plain reading of the policies, for random policies and flows.

mod plain;
mod world;

use model::{Action, Audience, Judge, Mode, Needs, VmIndex};
use plain::plain_reading;
use policy::{RuleTrace, compile};
use proptest::collection::vec;
use proptest::prelude::*;
use world::{flow, inventory, policies};

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn compiled_answer_equals_a_plain_reading(
        (inventory, set, flows) in (inventory(), policies(), vec(flow(), 1..20)),
    ) {
        let compiled = compile(&inventory, &set).unwrap();
        for flow in &flows {
            let query = flow.query(0, 0);
            let judgement = compiled.judge(&query);
            prop_assert_eq!(&judgement, &plain_reading(&inventory, &set, &query));

            let traces = compiled.explain(&query);
            let named = |wanted: fn(&RuleTrace) -> bool| {
                let found = traces.iter().filter(move |t| t.matched && wanted(t));
                found.map(|t| t.rule.clone()).collect::<Vec<_>>()
            };
            let inserted = plain::inserted(&inventory, &set, &query);
            prop_assert_eq!(
                named(|t| t.order.is_some()),
                inserted.iter().map(|insertion| insertion.rule.clone()).collect::<Vec<_>>()
            );
            let isolated = judgement.decided_by.0.ends_with("/(isolation)");
            let denying = inserted.iter().filter(|insertion| insertion.denies && !isolated);
            let access = judgement.matched.iter().skip(denying.count()).cloned().collect::<Vec<_>>();
            prop_assert_eq!(named(|t| t.order.is_none() && t.mode == Mode::Enforce), access);
            let audited = judgement.audited.iter().map(|(rule, _)| rule.clone()).collect::<Vec<_>>();
            prop_assert_eq!(named(|t| t.mode == Mode::Audit), audited);
            let levels: Vec<_> = traces.iter().map(|t| t.level).collect();
            prop_assert!(levels.is_sorted(), "{:?}", levels);
            prop_assert!(traces.iter().all(|trace| !trace.why.is_empty()));
        }
    }

    #[test]
    fn what_is_not_needed_changes_no_answer(
        (inventory, set, flows) in (inventory(), policies(), vec(flow(), 1..20)),
    ) {
        let compiled = compile(&inventory, &set).unwrap();
        for flow in &flows {
            let needs = compiled.needs(&flow.query(0, 0));
            let other = flow.query(usize::from(!needs.source), usize::from(!needs.destination));
            prop_assert_eq!(compiled.needs(&other), needs);
            prop_assert_eq!(compiled.judge(&flow.query(0, 0)), compiled.judge(&other));
        }
    }

    #[test]
    fn tenants_never_meet(
        (inventory, mut set, flows) in (inventory(), policies(), vec(flow(), 1..20)),
    ) {
        // The infrastructure's rules are about all tenants.
        set.flow_policies.retain(|policy| policy.audience != Audience::Everyone);
        let compiled = compile(&inventory, &set).unwrap();
        let tenant = |vm: VmIndex| &inventory.vm(vm).id.tenant;
        for flow in flows {
            let query = flow.query(0, 0);
            let judgement = compiled.judge(&query);
            let one = flow.ends[0].or(flow.ends[1]).unwrap();
            let own = format!("{}/", tenant(one));
            let ids = judgement.matched.iter().chain(judgement.audited.iter().map(|(id, _)| id));
            prop_assert!(ids.chain([&judgement.decided_by]).all(|id| id.0.starts_with(&own)));
            if flow.ends[1].is_some_and(|other| tenant(one) != tenant(other)) {
                prop_assert_eq!(judgement.action, Action::Deny);
                prop_assert_eq!(compiled.needs(&query), Needs::default());
                prop_assert!(judgement.matched.is_empty() && judgement.audited.is_empty());
            }
        }
    }
}
