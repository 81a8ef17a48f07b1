// SPDX-License-Identifier: Apache-2.0
//! How flows are spread over endpoints, and what changes that.

use std::time::Duration;

use model::{AcceptQueue, Balancing, EndpointState, Listener, Method, Moment, Share, VmSelector};
use proptest::collection::vec;
use proptest::prelude::*;
use vswitch::{Balancer, Candidate};

const FLOWS: u64 = 10_000;

fn candidates(groups: &[usize]) -> Vec<Candidate> {
    let candidate = |(name, group): (u64, &usize)| Candidate {
        name: name.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        group: Some(*group),
        local: name % 2 == 0,
        reachable: true,
    };
    (1..).zip(groups).map(candidate).collect()
}

fn shares(weights: &[u32]) -> Balancing {
    let shares = weights.iter().map(|weight| Share { vm: VmSelector::default(), weight: *weight });
    Balancing { shares: shares.collect(), ..Balancing::default() }
}

/// Somebody listens who has let so many connections wait, of so many that may.
fn queue(len: u32, max: u32) -> Listener {
    Listener::Present { queue: Some(AcceptQueue { len, max }) }
}

fn at(seconds: u64) -> Moment {
    Moment(0).after(Duration::from_secs(seconds))
}

/// Where `FLOWS` flows go, by endpoint.
fn spread(balancer: &mut Balancer, now: Moment, endpoints: usize) -> Vec<u64> {
    let mut counts = vec![0; endpoints];
    for flow in 0..FLOWS {
        counts[balancer.pick(now, flow, flow % 500).expect("somebody is in")] += 1;
    }
    counts
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    /// A canary gets its part of 10,000 flows to the flow, however the parts are and however many endpoints
    /// share each.
    #[test]
    fn shares_are_exact(weights in vec(0_u32..100, 2..5), each in 1_usize..4) {
        prop_assume!(weights.iter().any(|weight| *weight > 0));
        let groups: Vec<usize> = (0..weights.len()).flat_map(|group| vec![group; each]).collect();
        let mut balancer = Balancer::new(shares(&weights), &candidates(&groups));
        let counts = spread(&mut balancer, at(0), groups.len());
        let total: u32 = weights.iter().sum();
        for (group, weight) in weights.iter().enumerate() {
            let got: u64 = groups.iter().zip(&counts).filter(|(of, _)| **of == group).map(|(_, count)| count).sum();
            let due = FLOWS as f64 * f64::from(*weight) / f64::from(total);
            prop_assert!((got as f64 - due).abs() <= 1.0, "{weights:?}: group {group} got {got}, not {due}");
        }
    }

    /// Whatever happens, nobody who is out is picked while somebody is in.
    #[test]
    fn nobody_who_is_out_is_picked_while_somebody_is_in(
        events in vec((0_usize..6, 0_u8..6, 0_u64..30), 1..80), least in any::<bool>(),
    ) {
        let method = if least { Method::LeastOutstanding } else { Method::Maglev };
        let mut balancer = Balancer::new(Balancing { method, ..Balancing::default() }, &candidates(&[0; 6]));
        let mut now = 0;
        for (endpoint, event, seconds) in events {
            now += seconds;
            match event {
                0 => balancer.listens(at(now), endpoint, Listener::Absent),
                1 => balancer.listens(at(now), endpoint, queue(0, 0)),
                2 => balancer.failed(at(now), endpoint),
                3 => balancer.listens(at(now), endpoint, queue(seconds as u32, 16)),
                4 => balancer.nobody_listens(at(now), endpoint),
                _ => balancer.opened(endpoint),
            }
            let somebody = (0..6).any(|endpoint| balancer.is_in(at(now), endpoint));
            if let Some(picked) = balancer.pick(at(now), seconds, 0) {
                prop_assert!(!somebody || balancer.is_in(at(now), picked));
            } else {
                prop_assert!(!somebody);
            }
        }
    }
}

#[test]
fn maglev_spreads_evenly_and_sends_the_same_flow_to_the_same_endpoint() {
    let mut balancer = Balancer::new(Balancing::default(), &candidates(&[0; 10]));
    let counts = spread(&mut balancer, at(0), 10);
    assert!(counts.iter().all(|count| (900..1100).contains(count)), "{counts:?}");
    let picks: Vec<_> = (0..100).map(|flow| balancer.pick(at(0), flow, 0)).collect();
    assert_eq!(picks, (0..100).map(|flow| balancer.pick(at(0), flow, 0)).collect::<Vec<_>>());
}

#[test]
fn least_outstanding_goes_to_the_least_busy() {
    let balancing = Balancing { method: Method::LeastOutstanding, ..Balancing::default() };
    let mut balancer = Balancer::new(balancing, &candidates(&[0; 3]));
    for flow in 0..300 {
        let picked = balancer.pick(at(0), flow, 0).unwrap();
        balancer.opened(picked);
    }
    assert_eq!([0, 1, 2].map(|endpoint| balancer.flows(endpoint)), [100; 3]);
    (0..40).for_each(|_| balancer.closed(1));
    for flow in 0..40 {
        assert_eq!(balancer.pick(at(0), flow, 0), Some(1));
        balancer.opened(1);
    }
}

#[test]
fn affinity_keeps_a_client_at_one_endpoint_while_it_is_in() {
    let mut balancer =
        Balancer::new(Balancing { affinity: true, ..Balancing::default() }, &candidates(&[0; 8]));
    let first = balancer.pick(at(0), 1, 77).unwrap();
    assert!((0..1000).all(|flow| balancer.pick(at(0), flow, 77) == Some(first)));
    balancer.listens(at(1), first, Listener::Absent);
    assert_ne!(balancer.pick(at(1), 1, 77), Some(first));
    balancer.listens(at(2), first, queue(0, 0));
    assert_eq!(balancer.pick(at(2), 1, 77), Some(first));
}

#[test]
fn what_a_call_finds_counts_for_a_while_and_what_is_told_until_it_is_told_otherwise() {
    let mut balancer = Balancer::new(Balancing::default(), &candidates(&[0; 2]));
    let after = |ms| at(1).after(Duration::from_millis(ms));
    let picked = |balancer: &mut Balancer, now| (0..100).any(|flow| balancer.pick(now, flow, 0) == Some(0));
    // The process is there again before anybody has looked: nobody tells of a change.
    balancer.nobody_listens(after(0), 0);
    assert!(!picked(&mut balancer, after(199)));
    assert!(picked(&mut balancer, after(200)));
    // It was seen to be gone: a call that finds the same does not bring it back.
    balancer.nobody_listens(after(300), 0);
    balancer.listens(after(340), 0, Listener::Absent);
    balancer.nobody_listens(after(341), 0);
    assert!(!picked(&mut balancer, after(900)));
    // It was seen to be there: at once.
    balancer.nobody_listens(after(1000), 0);
    balancer.listens(after(1001), 0, Listener::Present { queue: None });
    assert!(picked(&mut balancer, after(1001)));
}

#[test]
fn whoever_does_not_accept_gets_nothing_new_until_half_is_accepted() {
    let mut balancer = Balancer::new(Balancing::default(), &candidates(&[0; 2]));
    let mut gets = |waiting: u32| {
        balancer.listens(at(1), 0, queue(waiting, 4));
        (spread(&mut balancer, at(1), 2)[0] > 0, balancer.state(at(1), 0))
    };
    assert_eq!(gets(4), (true, EndpointState::In), "one more fits");
    assert_eq!(gets(5), (false, EndpointState::QueueFull));
    assert_eq!(gets(3), (false, EndpointState::QueueFull), "it would be full again at once");
    assert_eq!(gets(2), (true, EndpointState::In));
    assert_eq!(gets(4), (true, EndpointState::In));
    assert_eq!(balancer.queue(0), Some(AcceptQueue { len: 4, max: 4 }));
}

#[test]
fn where_all_are_full_or_ejected_they_share_as_before() {
    let mut balancer = Balancer::new(Balancing::default(), &candidates(&[0; 2]));
    balancer.listens(at(1), 0, queue(5, 4));
    balancer.refused(at(1), 1);
    assert!(spread(&mut balancer, at(1), 2).iter().all(|flows| *flows > 0));
    assert!(balancer.may_go_elsewhere(at(1), 1, false), "the full one has only to accept what waits");
    balancer.refused(at(1), 0);
    assert!(!balancer.may_go_elsewhere(at(1), 1, false));
    assert!(balancer.may_go_elsewhere(at(1), 1, true), "the other may have been left out wrongly");
}

#[test]
fn an_endpoint_says_why_it_is_out() {
    let balancing = Balancing { slow_start: Duration::from_secs(5), ..shares(&[1, 0]) };
    let mut candidates = candidates(&[0, 1, 0, 0]);
    candidates[2].reachable = false;
    let mut balancer = Balancer::new(balancing, &candidates);
    assert_eq!(
        [0, 1, 2].map(|endpoint| balancer.state(at(9), endpoint)),
        [EndpointState::In, EndpointState::Drained, EndpointState::NoPort]
    );
    balancer.refused(at(9), 0);
    assert_eq!(balancer.state(at(12), 0), EndpointState::Ejected { left: Duration::from_secs(7) });
    balancer.listens(at(12), 0, Listener::Absent);
    assert_eq!(balancer.state(at(12), 0), EndpointState::NotListening);
    balancer.listens(at(30), 0, queue(0, 4));
    assert_eq!(balancer.state(at(31), 0), EndpointState::SlowStart);
}

#[test]
fn local_endpoints_come_first_while_one_is_in() {
    let balancing = Balancing { local_first: true, ..Balancing::default() };
    let mut balancer = Balancer::new(balancing, &candidates(&[0; 4]));
    let counts = spread(&mut balancer, at(0), 4);
    assert_eq!((counts[0], counts[2]), (0, 0), "names 1 and 3 are remote");
    balancer.listens(at(1), 1, Listener::Absent);
    balancer.listens(at(1), 3, Listener::Absent);
    let counts = spread(&mut balancer, at(1), 4);
    assert_eq!((counts[1], counts[3]), (0, 0));
}

#[test]
fn failures_in_a_row_eject_for_longer_each_time_and_an_answer_forgives() {
    let mut balancer = Balancer::new(Balancing::default(), &candidates(&[0; 2]));
    let fail = |balancer: &mut Balancer, seconds, times| {
        (0..times).for_each(|_| balancer.failed(at(seconds), 0));
    };
    fail(&mut balancer, 0, 2);
    balancer.succeeded(0);
    fail(&mut balancer, 0, 2);
    assert!(balancer.is_in(at(0), 0), "two in a row are not three");
    fail(&mut balancer, 0, 1);
    assert!(!balancer.is_in(at(9), 0) && balancer.is_in(at(10), 0));
    assert_eq!(spread(&mut balancer, at(9), 2)[0], 0);
    assert!(spread(&mut balancer, at(10), 2)[0] > 0);
    fail(&mut balancer, 10, 3);
    assert!(!balancer.is_in(at(29), 0) && balancer.is_in(at(30), 0));
    (0..3).for_each(|_| balancer.failed(at(29), 1));
    assert!(balancer.pick(at(29), 0, 0).is_some(), "a bad endpoint is better than none");
}

#[test]
fn drained_endpoints_get_nothing_new_and_keep_what_is_open() {
    let mut balancer = Balancer::new(shares(&[1, 1]), &candidates(&[0, 1]));
    balancer.opened(1);
    balancer.update(at(1), shares(&[1, 0]), &candidates(&[0, 1]));
    assert_eq!(spread(&mut balancer, at(1), 2), [FLOWS, 0]);
    assert_eq!(balancer.flows(1), 1);
}

#[test]
fn who_comes_in_starts_slowly() {
    let balancing = Balancing { slow_start: Duration::from_secs(10), ..Balancing::default() };
    let mut balancer = Balancer::new(balancing.clone(), &candidates(&[0]));
    balancer.update(at(100), balancing, &candidates(&[0; 2]));
    let part = |balancer: &mut Balancer, seconds| spread(balancer, at(seconds), 2)[1];
    let (early, middle, late) =
        (part(&mut balancer, 101), part(&mut balancer, 105), part(&mut balancer, 110));
    assert!(early < middle && middle < late, "{early} {middle} {late}");
    assert!((4_500..5_500).contains(&late), "{late}");
}

#[test]
fn without_anybody_there_is_nobody_to_pick() {
    let mut balancer = Balancer::new(Balancing::default(), &[]);
    assert_eq!(balancer.pick(at(0), 1, 1), None);
    let mut unreachable = candidates(&[0; 2]);
    unreachable.iter_mut().for_each(|candidate| candidate.reachable = false);
    assert_eq!(Balancer::new(Balancing::default(), &unreachable).pick(at(0), 1, 1), None);
}

#[test]
fn a_choice_says_what_it_was_made_by() {
    let now = at(0);
    let why = |balancer: &mut Balancer| balancer.choose(now, 1, 1).unwrap().1.to_string();
    let everywhere = Balancing { local_first: false, ..shares(&[1, 0]) };
    let mut balancer = Balancer::new(everywhere, &candidates(&[0, 0, 1]));
    assert_eq!(why(&mut balancer), "maglev, hash of the flow, share 1 of 1");
    (0..3).for_each(|endpoint| balancer.refused(now, endpoint));
    assert_eq!(why(&mut balancer), "maglev, hash of the flow, all are ejected or full, share 1 of 1");
    let (method, affinity) = (Method::LeastOutstanding, true);
    let careful = Balancing { method, affinity, local_first: true, ..Balancing::default() };
    let mut balancer = Balancer::new(careful, &candidates(&[0, 0]));
    assert_eq!(why(&mut balancer), "least outstanding, affinity of the client, local first");
    let slow_start = Duration::from_secs(100);
    let mut balancer = Balancer::new(Balancing { slow_start, ..Balancing::default() }, &candidates(&[0]));
    balancer.listens(now, 0, Listener::Absent);
    balancer.listens(now, 0, queue(0, 0));
    assert!(why(&mut balancer).ends_with("passed over in slow start"));
}
