// SPDX-License-Identifier: Apache-2.0
//! Whom services exist for: held against a plain reading, pairwise and at random.

use std::collections::BTreeMap;

use model::{
    Action, Application, Attribution, Audience, Confidence, Directory, FiveTuple, FlowQuery, Inventory,
    Level, MacAddr, Name, Nic, OfferIndex, Party, PolicySet, PortMatch, Process, ProcessSelector, Protocol,
    Ranges, Service, Sight, SocketMode, Tenant, UnknownReason, Vm, VmIndex, VmSelector, Workload,
};
use policy::{Catalogue, CatalogueError, catalogue};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

const TENANTS: [&str; 2] = ["acme", "globex"];
const APPS: [&str; 2] = ["shop", "blog"];
const EXES: [&str; 2] = ["/usr/bin/a", "/usr/bin/b"];

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn labelled(pairs: &[(&str, &str)]) -> VmSelector {
    let labels = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    VmSelector { name: None, labels }
}

fn runs(exe: &str) -> ProcessSelector {
    ProcessSelector { exe: Some(exe.parse().unwrap()), ..ProcessSelector::default() }
}

fn process(exe: &str) -> Attribution {
    Attribution {
        process: Some(Process { exe: Some(exe.to_owned()), ..Process::default() }),
        confidence: Confidence::Descriptor,
        unknown: None,
        ..Attribution::unknown(UnknownReason::NoSocket)
    }
}

/// Two tenants of the same shape: in each, every pair of application and side has one machine.
fn inventory() -> Inventory {
    let tenant = |tenant: &&str| Tenant { name: name(tenant), default_action: Action::Deny };
    let mut vms = Vec::new();
    for (t, tenant) in TENANTS.iter().enumerate() {
        for (index, (app, side)) in
            APPS.iter().flat_map(|app| ["left", "right"].map(|side| (app, side))).enumerate()
        {
            let labels = BTreeMap::from([("app".into(), (*app).into()), ("side".into(), side.into())]);
            vms.push(Vm {
                id: format!("{tenant}/{app}-{side}").parse().unwrap(),
                labels,
                nics: vec![Nic {
                    name: name("net0"),
                    socket: format!("{tenant}-{index}.sock").into(),
                    socket_mode: SocketMode::Listen,
                    mac: MacAddr([2, 0, 0, 0, t as u8, index as u8]),
                    addresses: vec![format!("10.0.0.{}/24", index + 1).parse().unwrap()],
                    mtu_bytes: 1500,
                }],
            });
        }
    }
    Inventory::new(TENANTS.iter().map(tenant).collect(), vms).unwrap()
}

fn applications() -> Vec<Application> {
    let of = |tenant: &str, app: &str| Application {
        tenant: name(tenant),
        name: name(app),
        selector: Workload { vm: labelled(&[("app", app)]), process: None },
    };
    TENANTS.iter().flat_map(|tenant| APPS.map(|app| of(tenant, app))).collect()
}

fn service(tenant: &str, called: &str, audience: Audience) -> Service {
    let ports = vec![PortMatch { ports: Some(80.into()), protocol: Protocol::Tcp }];
    let selector = Workload { vm: labelled(&[("app", "blog"), ("side", "right")]), process: None };
    Service { audience, ..Service::new(name(tenant), name(called), selector, ports) }
}

fn compiled(services: Vec<Service>) -> Result<Catalogue, CatalogueError> {
    let set = PolicySet { applications: applications(), services, ..PolicySet::default() };
    catalogue(&inventory(), &set, &Ranges::default())
}

// The plain reading.

fn selects(workload: &Workload, vm: &Vm, exe: Option<&str>) -> bool {
    let process = match &workload.process {
        None => true,
        Some(selector) => exe.is_some_and(|exe| selector.exe.as_ref().unwrap().as_str() == exe),
    };
    workload.vm.selects(vm) && process
}

fn plainly_visible(service: &Service, applications: &[Application], vm: &Vm, exe: Option<&str>) -> bool {
    let in_application = |called: &Name| {
        let found = applications.iter().find(|a| a.tenant == service.tenant && a.name == *called);
        selects(&found.unwrap().selector, vm, exe)
    };
    let own = vm.id.tenant == service.tenant;
    match &service.audience {
        Audience::Everyone => true,
        Audience::Tenant => own,
        Audience::Application(app) => own && in_application(app),
        Audience::Subset(app, subset) => own && in_application(app) && selects(subset, vm, exe),
    }
}

fn audiences() -> Vec<Audience> {
    let mut all = vec![Audience::Everyone, Audience::Tenant];
    for app in APPS {
        all.push(Audience::Application(name(app)));
        for side in ["left", "right"] {
            let subset = Workload { vm: labelled(&[("side", side)]), process: None };
            all.push(Audience::Subset(name(app), subset.clone()));
            all.push(Audience::Subset(name(app), Workload { process: Some(runs(EXES[0])), ..subset }));
        }
    }
    all
}

fn position(catalogue: &Catalogue, id: &str) -> OfferIndex {
    let found = catalogue.offers().iter().position(|offer| &*offer.id.0 == id).unwrap();
    OfferIndex(found as u32)
}

fn sight(catalogue: &Catalogue, id: &str, vm: VmIndex, who: Option<&Attribution>) -> Sight {
    catalogue.sees(position(catalogue, id), Party { vm: Some(vm), attribution: who })
}

#[test]
fn every_level_tenant_application_and_subset_reaches_exactly_its_own() {
    let inventory = inventory();
    for owner in TENANTS {
        for audience in audiences() {
            let service = service(owner, "s", audience);
            let catalogue = compiled(vec![service.clone()]).unwrap();
            for (index, vm) in inventory.vms() {
                for exe in [None, Some(EXES[0]), Some(EXES[1])] {
                    let known = exe.map(process);
                    let expected = plainly_visible(&service, &applications(), vm, exe);
                    let seen = sight(&catalogue, &format!("{owner}/s"), index, known.as_ref());
                    match seen {
                        Sight::Unsure => {
                            assert_eq!(exe, None);
                            let other = EXES
                                .iter()
                                .any(|exe| plainly_visible(&service, &applications(), vm, Some(exe)));
                            assert!(other, "{service:?} is never visible to {}", vm.id);
                        }
                        seen => assert_eq!(seen == Sight::Seen, expected, "{service:?} {} {exe:?}", vm.id),
                    }
                }
            }
        }
    }
}

#[test]
fn endpoints_refuse_whoever_sees_none_of_their_services() {
    let application = |app: &str| Audience::Application(name(app));
    let catalogue = compiled(vec![service("acme", "s", application("shop"))]).unwrap();
    let inventory = inventory();
    let find = |id: &str| inventory.find(&id.parse().unwrap()).unwrap();
    let server = find("acme/blog-right");
    let reaches = |from: Option<&str>, port| {
        let address = [10, 0, 0, 1].into();
        catalogue.reaches(&FlowQuery {
            tuple: FiveTuple {
                source: address,
                destination: address,
                source_port: 1,
                destination_port: port,
                protocol: Protocol::Tcp,
            },
            source: Party { vm: from.map(find), attribution: None },
            destination: Party { vm: Some(server), attribution: None },
            names: &[],
        })
    };
    assert_eq!(reaches(Some("acme/shop-left"), 80), Sight::Seen);
    assert_eq!(reaches(Some("acme/blog-left"), 80), Sight::Hidden);
    assert_eq!(reaches(Some("acme/blog-left"), 81), Sight::Seen, "nothing is offered there");
    assert_eq!(reaches(None, 80), Sight::Hidden, "the world is not the application");
    assert_eq!(reaches(None, 81), Sight::Seen);
}

#[test]
fn innermost_comes_first_among_services_of_one_name() {
    let called = |id: &str, audience| Service { hostname: name("db"), ..service("acme", id, audience) };
    let subset = Workload { vm: labelled(&[("side", "left")]), process: None };
    let catalogue = compiled(vec![
        called("a", Audience::Everyone),
        called("b", Audience::Subset(name("shop"), subset)),
        called("c", Audience::Tenant),
        called("d", Audience::Application(name("shop"))),
    ])
    .unwrap();
    let levels: Vec<Level> = catalogue
        .called(&name("db"))
        .iter()
        .map(|index| catalogue.offers()[index.0 as usize].level)
        .collect();
    assert_eq!(levels, [Level::Instance, Level::Application, Level::Tenant, Level::Infrastructure]);
}

#[test]
fn contradictions_are_refused() {
    let app = |app: &str| Audience::Application(name(app));
    let same = |audience: Audience| Service { hostname: name("x"), ..service("acme", "b", audience) };
    let twice = |audience: Audience| compiled(vec![service("acme", "x", audience.clone()), same(audience)]);
    for audience in [Audience::Everyone, Audience::Tenant, app("shop")] {
        assert!(matches!(twice(audience), Err(CatalogueError::Ambiguous { .. })));
    }
    assert!(compiled(vec![service("acme", "x", app("shop")), same(app("blog"))]).is_ok());
    assert!(matches!(
        compiled(vec![service("acme", "x", app("nowhere"))]),
        Err(CatalogueError::NoApplication { .. })
    ));
    let held = Service { addresses: vec![[10, 0, 0, 1].into()], ..service("acme", "x", Audience::Tenant) };
    assert!(matches!(compiled(vec![held]), Err(CatalogueError::AddressHeld { .. })));
}

fn any_service() -> impl Strategy<Value = (usize, usize, Audience)> {
    (0..TENANTS.len(), 0..3_usize, select(audiences()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever else there is, each service is seen by those it is for, and its address never moves.
    #[test]
    fn no_other_resource_widens_visibility_or_moves_an_address(
        (drawn, who, exe) in (vec(any_service(), 1..12), 0..8_u32, option::of(select(EXES.to_vec())))
    ) {
        let services: Vec<Service> = drawn.into_iter().enumerate().map(|(index, (tenant, called, audience))| {
            let id = format!("s{index}");
            Service { hostname: name(&format!("h{called}-{index}")), ..service(TENANTS[tenant], &id, audience) }
        }).collect();
        let together = compiled(services.clone()).unwrap();
        let inventory = inventory();
        let vm = inventory.vm(VmIndex(who));
        let known = exe.map(process);
        for service in &services {
            let id = format!("{}/{}", service.tenant, service.name);
            let alone = compiled(vec![service.clone()]).unwrap();
            let seen = sight(&together, &id, VmIndex(who), known.as_ref());
            prop_assert_eq!(seen, sight(&alone, &id, VmIndex(who), known.as_ref()));
            if seen == Sight::Seen {
                prop_assert!(plainly_visible(service, &applications(), vm, exe));
            }
            let (one, other) = (position(&together, &id), position(&alone, &id));
            let (one, other) = (&together.offers()[one.0 as usize], &alone.offers()[other.0 as usize]);
            prop_assert_eq!((one.v4, one.v6), (other.v4, other.v6));
        }
    }
}
