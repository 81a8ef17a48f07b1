// SPDX-License-Identifier: Apache-2.0
//! The compiled answer equals a plain reading of the policies, for random policies and flows.

mod plain;
mod world;

use model::{Action, Audience, Judge, Mode, Needs, PolicySet, RuleId, VmIndex};
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
    fn calls_between_tenants_are_judged_by_a_plain_reading_of_both_and_never_let_in_by_it(
        (inventory, set, flows) in (inventory(), policies(), vec(flow(), 1..20)),
    ) {
        let compiled = compile(&inventory, &set).unwrap();
        let silent = compile(&inventory, &PolicySet { policies: Vec::new(), ..set.clone() }).unwrap();
        let tenant = |vm: Option<VmIndex>| vm.map(|vm| &inventory.vm(vm).id.tenant);
        for flow in &flows {
            let [Some(_), Some(_)] = flow.ends else { continue };
            let [caller, owner] = flow.ends.map(tenant);
            if caller == owner {
                continue;
            }
            let service = RuleId(format!("{}/i", owner.unwrap()).into());
            let query = flow.query(0, 0);
            let judgement = compiled.judge_call(&service, &query);
            prop_assert_eq!(&judgement, &plain::plain_call(&inventory, &set, &query));
            if judgement.action == Action::Allow {
                prop_assert_eq!(silent.judge_call(&service, &query).action, Action::Allow);
            }

            let traces = compiled.explain_call(&service, &query);
            let access = traces.iter().filter(|t| t.matched && t.order.is_none() && t.mode == Mode::Enforce);
            let access: Vec<_> = access.map(|t| t.rule.clone()).collect();
            prop_assert!(judgement.matched.ends_with(&access), "{:?} {:?}", judgement.matched, access);
            prop_assert!(traces.iter().all(|trace| !trace.why.is_empty()));

            let needs = compiled.needs_of_call(&service, &query);
            let other = flow.query(usize::from(!needs.source), usize::from(!needs.destination));
            prop_assert_eq!(compiled.needs_of_call(&service, &other), needs);
            prop_assert_eq!(compiled.judge_call(&service, &other), judgement);
            // What leads elsewhere stays isolated.
            prop_assert_eq!(compiled.judge(&query).action, Action::Deny);
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
