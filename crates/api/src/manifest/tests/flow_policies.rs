// SPDX-License-Identifier: Apache-2.0
//! Flow policies: what loads, and where the rest is refused.

use model::{Audience, FlowPolicy, VmSelector, Workload};

use super::*;

#[test]
fn flow_policies_load_and_their_mistakes_are_placed() {
    let policy =
        |spec: &str| format!("kind: FlowPolicy\nmetadata: {{name: watch, tenant: acme}}\nspec: {{{spec}}}\n");
    let good = policy("to: [{ports: [{port: 80}]}], mirror: {vm: web}, redirect: {vm: web, port: 81}");
    let manifests = load_text(&format!("{BASE}{good}")).unwrap();
    let [flow_policy] = manifests.policies().flow_policies.as_slice() else { panic!("one policy") };
    assert_eq!(flow_policy.redirect.as_ref().and_then(|redirect| redirect.port), Some(81));
    assert_eq!(flow_policy.mirror.as_ref().map(model::Name::as_str), Some("web"));
    assert_eq!(manifests.resources()["FlowPolicy"], 1);
    assert_eq!((&flow_policy.audience, flow_policy.order), (&Audience::Tenant, FlowPolicy::ORDER_DEFAULT));
    for (spec, sample) in
        [("trace: {}", "100%"), ("trace: {sample: 0.5%}", "0.5%"), ("trace: {sample: 0%}", "0%")]
    {
        let manifests = load_text(&format!("{BASE}{}", policy(spec))).expect(spec);
        assert_eq!(manifests.policies().flow_policies[0].trace, Some(sample.parse().unwrap()));
    }
    for (spec, words) in [("layer7: {}", None), ("layer7: {protocols: [tls, http]}", Some("http,tls"))] {
        let manifests = load_text(&format!("{BASE}{}", policy(spec))).expect(spec);
        let layer7 = manifests.policies().flow_policies[0].layer7.expect("it is given");
        assert_eq!(layer7.protocols.map(|protocols| protocols.to_string()).as_deref(), words);
    }
    for (spec, demands) in [
        ("authenticate: true", (true, false)),
        ("encrypt: true", (false, true)),
        ("authenticate: false, encrypt: true", (false, true)),
        ("log: true", (false, false)),
    ] {
        let manifests = load_text(&format!("{BASE}{}", policy(spec))).expect(spec);
        let [flow_policy] = manifests.policies().flow_policies.as_slice() else { panic!("one policy") };
        assert_eq!((flow_policy.authenticate, flow_policy.encrypt), demands, "{spec}");
    }
    for (spec, expected) in [
        ("to: [{ports: [{port: 80}]}]", (3, 7, "spec", "does nothing")),
        ("mirror: {vm: wob}", (3, 21, "spec.mirror.vm", "not defined")),
        ("log: 1", (3, 13, "spec.log", "true or false")),
        ("log: true, order: 1000001", (3, 26, "spec.order", "0 to 1000000")),
        ("log: true, action: Allow", (3, 27, "spec.action", "use Deny")),
        ("log: true, level: application", (3, 7, "spec", "needs `application`")),
        ("log: true, instances: {vm: {}}", (3, 7, "spec", "`instances`")),
        ("trace: {sample: 101%}", (3, 24, "spec.trace.sample", "`0%` to `100%`")),
        ("trace: {sample: -1%}", (3, 24, "spec.trace.sample", "`0%` to `100%`")),
        ("trace: {sample: 10}", (3, 24, "spec.trace.sample", "expected text")),
        ("trace: {rate: 10%}", (3, 16, "spec.trace.rate", "unknown field")),
        ("trace: true", (3, 15, "spec.trace", "expected a map")),
        ("authenticate: yes", (3, 22, "spec.authenticate", "true or false")),
        ("log: true, authenticate: {both: true}", (3, 33, "spec.authenticate", "true or false")),
        ("layer7: true", (3, 16, "spec.layer7", "expected a map")),
        ("layer7: {protocol: http}", (3, 17, "spec.layer7.protocol", "unknown field")),
        ("layer7: {protocols: http}", (3, 28, "spec.layer7.protocols", "expected a list")),
        ("layer7: {protocols: []}", (3, 28, "spec.layer7.protocols", "no protocol is named")),
        ("layer7: {protocols: [http, quic]}", (3, 35, "spec.layer7.protocols[1]", "use http")),
        ("log: true, encrypt: {}", (3, 28, "spec.encrypt", "true or false")),
        ("encrypt: strict", (3, 17, "spec.encrypt", "true or false")),
        ("mirror: {}", (3, 16, "spec.mirror", "`vm` is missing")),
        ("redirect: {vm: web, port: 0}", (3, 34, "spec.redirect.port", "1 to 65535")),
        (
            "from: [{process: {uid: 0}}], redirect: {vm: web}",
            (3, 47, "spec.redirect", "before its process is known"),
        ),
    ] {
        check_after_base(&policy(spec), &[expected]);
    }
}

#[test]
fn flow_policies_speak_for_their_level_and_no_other() {
    let application = "kind: Application\nmetadata: {name: shop, tenant: acme}\nspec: {selector: {vm: {}}}\n---\n\
         apiVersion: meshvisor.dev/v1alpha1\n";
    let policy = |spec: &str| {
        format!(
            "{application}kind: FlowPolicy\nmetadata: {{name: watch, tenant: acme}}\nspec: {{log: true, {spec}}}\n"
        )
    };
    let web = || Workload {
        vm: VmSelector { name: None, labels: [("tier".into(), "web".into())].into() },
        process: None,
    };
    for (spec, audience) in [
        ("level: tenant, order: 7", Audience::Tenant),
        ("level: application, application: shop, order: 7", Audience::Application("shop".parse().unwrap())),
        (
            "level: instance, application: shop, instances: {vm: {labels: {tier: web}}}, order: 7",
            Audience::Subset("shop".parse().unwrap(), web()),
        ),
    ] {
        let manifests = load_text(&format!("{BASE}{}", policy(spec))).expect(spec);
        let [flow_policy] = manifests.policies().flow_policies.as_slice() else { panic!("one policy") };
        assert_eq!((&flow_policy.audience, flow_policy.order, flow_policy.log), (&audience, 7, true));
    }

    let for_all = policy("level: infrastructure, action: Deny, to: [{ports: [{port: 23}]}]");
    check_after_base(&for_all, &[(8, 26, "spec.level", "may not write for the infrastructure")]);
    let base =
        BASE.replace("metadata: {name: acme}\n", "metadata: {name: acme}\nspec: {infrastructure: true}\n");
    let manifests = load_text(&format!("{base}{for_all}")).unwrap();
    let [flow_policy] = manifests.policies().flow_policies.as_slice() else { panic!("one policy") };
    assert_eq!((&flow_policy.audience, flow_policy.denies), (&Audience::Everyone, true));
    for own in ["to: [{application: shop}]", "from: [{application: shop}]", "redirect: {vm: web}"] {
        let text = format!("{base}{}", policy(&format!("level: infrastructure, {own}")));
        check(&text, &[(21, 26, "spec.level", "a tenant's own")]);
    }
    let wrong = base.replace("infrastructure: true", "infrastructure: 1");
    check(&format!("{wrong}{}", policy("level: tenant")), &[(4, 24, "spec.infrastructure", "true or false")]);
}
