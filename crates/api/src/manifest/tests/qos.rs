// SPDX-License-Identifier: Apache-2.0
//! Limits, shares and reservations: what loads, and where the rest is refused.

use model::{BitRate, LatencyClass, Limit, Part, Qos};

use super::*;

const NIC: &str =
    r#"nics: [{name: net0, socket: db.sock, mac: "02:6d:76:00:01:0c", addresses: [10.0.0.12/24]}]"#;

fn rate(bits: u64) -> BitRate {
    BitRate::new(bits).unwrap()
}

#[test]
fn machines_services_and_policies_can_be_limited() {
    let text = format!(
        "{BASE}kind: VirtualMachine
metadata: {{name: db, tenant: acme}}
spec:
  qos: {{limit: {{bitsPerSecond: 8000000, burstBytes: 0}}, shares: 7, reservation: {{bitsPerSecond: 1000}}, class: Interactive}}
  {NIC}
---
{HEADER}kind: Service
metadata: {{name: s, tenant: acme}}
spec: {{selector: {{vm: {{}}}}, ports: [{{port: 80}}], limit: {{bitsPerSecond: 80000000}}, reservation: {{bitsPerSecond: 5000}}}}
---
{HEADER}kind: FlowPolicy
metadata: {{name: slow, tenant: acme}}
spec: {{from: [{{process: {{uid: 7}}}}], limit: {{bitsPerSecond: 1000}}, shares: 20}}
"
    );
    let (inventory, policies) = load_text(&text).unwrap().into_parts();
    let db = inventory.find(&"acme/db".parse().unwrap()).unwrap();
    let limit = Limit { rate: rate(8_000_000), burst_bytes: 0 };
    let (reservation, class) = (Some(rate(1000)), LatencyClass::Interactive);
    assert_eq!(inventory.qos(db), Qos { limit: Some(limit), shares: 7, reservation, class });
    assert!(inventory.limit(db).is_some());
    let web = inventory.find(&"acme/web".parse().unwrap()).unwrap();
    assert_eq!((inventory.qos(web), inventory.limit(web)), (Qos::default(), None));
    assert_eq!(policies.services[0].limit, Some(Limit::new(rate(80_000_000))));
    assert_eq!(policies.flow_policies[0].limit, Some(Limit::new(rate(1000))));
    let reserved = Part { shares: 100, reservation: Some(rate(5000)) };
    assert_eq!(policies.services[0].part, Some(reserved));
    assert_eq!(policies.flow_policies[0].part, Some(Part { shares: 20, reservation: None }));
}

#[test]
fn mistakes_in_what_machines_get_are_placed() {
    for (qos, expected) in [
        ("{shares: 0}", (4, 17, "spec.qos.shares", "1 to 10000")),
        ("{limit: {}}", (4, 16, "spec.qos.limit", "`bitsPerSecond` is missing")),
        ("{limit: {bitsPerSecond: 999}}", (4, 32, "spec.qos.limit.bitsPerSecond", "1000 to")),
        ("{limit: {bitsPerSecond: 10Mbit}}", (4, 32, "spec.qos.limit.bitsPerSecond", "whole number")),
        ("{limit: {bitsPerSecond: 1000, burst: 1}}", (4, 38, "spec.qos.limit.burst", "burstBytes")),
        ("{class: Fast}", (4, 16, "spec.qos.class", "Standard or Interactive")),
        (
            "{limit: {bitsPerSecond: 1000}, reservation: {bitsPerSecond: 1001}}",
            (4, 8, "spec.qos", "more is reserved"),
        ),
    ] {
        let text = format!(
            "kind: VirtualMachine\nmetadata: {{name: db, tenant: acme}}\nspec:\n  qos: {qos}\n  {NIC}\n"
        );
        check_after_base(&text, &[expected]);
    }
}
