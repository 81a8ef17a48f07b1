// SPDX-License-Identifier: Apache-2.0
//! Flows, in a table and one by one.

use std::net::IpAddr;

use api::admin::{Flow, Party, Verdict};

use super::{Grid, Style, Tone, plain, size, span};
use crate::text::visible;

/// The flow table.
pub(crate) fn flows(flows: &[Flow], style: Style) -> String {
    let header = [
        "VERDICT",
        "PROTO",
        "SOURCE",
        "PROCESS",
        "DESTINATION",
        "DECIDED BY",
        "SERVICES",
        "STATE",
        "PACKETS",
        "BYTES",
        "SEEN",
    ];
    let mut grid = Grid::new(style, &header, &[8, 9, 10]);
    for flow in flows {
        let (verdict, tone) = match flow.verdict {
            Verdict::Allow => ("allow", Tone::Good),
            Verdict::Deny => ("deny", Tone::Bad),
        };
        grid.row(vec![
            (verdict.to_owned(), tone),
            plain(protocol(flow)),
            plain(end(&flow.source)),
            plain(actor(&flow.source)),
            plain(end(&flow.destination)),
            plain(&flow.decided_by),
            plain(added(flow)),
            plain(&flow.state),
            plain(flow.packets),
            plain(size(flow.bytes)),
            plain(span(flow.last_seen_ms)),
        ]);
    }
    grid.finish("no flows")
}

/// One flow on one line.
pub(crate) fn flow_line(flow: &Flow, style: Style) -> String {
    let verdict = match flow.verdict {
        Verdict::Allow => style.good("allow"),
        Verdict::Deny => style.bad("deny "),
    };
    let audited = match flow.audited.as_slice() {
        [] => String::new(),
        rules => format!("  {}", style.notice(&format!("audit: {}", visible(&rules.join(", "))))),
    };
    let because = flow.because.as_ref();
    let because = because.map(|because| format!(", because {}", visible(because))).unwrap_or_default();
    let reason =
        flow.reason.as_ref().map(|reason| format!("  dropped: {}", visible(reason))).unwrap_or_default();
    let services = match added(flow).as_str() {
        "" => String::new(),
        services => format!("  services: {}", visible(services)),
    };
    format!(
        "{verdict} {} {} ({}) -> {}  by {} at generation {}{because}{services}{audited}{reason}\n",
        visible(&protocol(flow)),
        visible(&end(&flow.source)),
        visible(&actor(&flow.source)),
        visible(&end(&flow.destination)),
        visible(&flow.decided_by),
        flow.generation,
    )
}

/// What it runs over, and what is spoken in it.
pub(super) fn protocol(flow: &Flow) -> String {
    match &flow.speaks {
        Some(spoken) => format!("{}/{spoken}", flow.protocol),
        None => flow.protocol.clone(),
    }
}

/// Its services, but for what every flow has.
fn added(flow: &Flow) -> String {
    let mut words: Vec<&str> = flow.services.iter().map(|service| service.service.as_str()).collect();
    words.retain(|word| *word != "authorize");
    words.dedup();
    words.join(",")
}

/// Machine, address and port, as far as there are any.
pub(super) fn end(party: &Party) -> String {
    let address = match (party.address, party.port) {
        (address, 0) => address.to_string(),
        (IpAddr::V4(v4), port) => format!("{v4}:{port}"),
        (IpAddr::V6(v6), port) => format!("[{v6}]:{port}"),
    };
    match &party.vm {
        Some(vm) => format!("{vm} {address}"),
        None => address,
    }
}

/// Who acts, in a few words.
fn actor(party: &Party) -> String {
    match (&party.process, party.unknown) {
        (Some(process), _) => process.exe.as_ref().unwrap_or(&process.name).clone(),
        (None, Some(reason)) => format!("unknown: {}", super::word(&reason)),
        (None, None) => "not asked".to_owned(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use api::admin::{Confidence, FlowService, Process, UnknownReason};

    use super::*;

    fn service(service: &str, rule: &str, place: Option<(&str, u32)>) -> FlowService {
        let (level, order) = place.map(|(level, order)| (level.to_owned(), order)).unzip();
        FlowService { service: service.into(), rule: rule.into(), level, order }
    }

    /// A flow of `/usr/bin/storefront` in `acme/web` to `acme/api`.
    pub(crate) fn storefront() -> Flow {
        let address = |last: u8| IpAddr::from([10, 0, 0, last]);
        Flow {
            id: 1,
            protocol: "tcp".into(),
            speaks: None,
            source: Party {
                vm: Some("acme/web".into()),
                address: address(11),
                port: 40112,
                process: Some(Process {
                    pid: 812,
                    parent_pid: 1,
                    name: "storefront".into(),
                    exe: Some("/usr/bin/storefront".into()),
                    uid: Some(33),
                    user: None,
                    unit: Some("storefront.service".into()),
                    cgroup: None,
                    start_time_ns: 5,
                }),
                uid: Some(33),
                user: None,
                confidence: Some(Confidence::Descriptor),
                unknown: None,
                netns: None,
                inner: None,
            },
            destination: Party {
                vm: Some("acme/api".into()),
                address: address(12),
                port: 8080,
                process: None,
                uid: None,
                user: None,
                confidence: None,
                unknown: None,
                netns: None,
                inner: None,
            },
            verdict: Verdict::Allow,
            decided_by: "acme/storefront-to-api".into(),
            because: None,
            matched: vec!["acme/storefront-to-api".into()],
            audited: vec![],
            services: vec![
                service("authorize", "acme/storefront-to-api", None),
                service("mirror", "infra/watch", Some(("infrastructure", 10))),
                service("mirror", "acme/watch", Some(("tenant", 1000))),
            ],
            generation: 3,
            state: "established".into(),
            packets: 12,
            bytes: 3000,
            first_seen_ms: 60_000,
            last_seen_ms: 1500,
            reason: None,
        }
    }

    #[test]
    fn flow_table_aligns() {
        assert_eq!(
            flows(&[storefront()], Style::default()),
            "\
VERDICT  PROTO  SOURCE                    PROCESS              DESTINATION              DECIDED BY              SERVICES  STATE        PACKETS    BYTES  SEEN
allow    tcp    acme/web 10.0.0.11:40112  /usr/bin/storefront  acme/api 10.0.0.12:8080  acme/storefront-to-api  mirror    established       12  2.9 KiB    1s
"
        );
        assert_eq!(flows(&[], Style::default()), "no flows\n");
    }

    #[test]
    fn flow_line_tells_who_and_by_which_rule() {
        let mut flow = storefront();
        assert_eq!(
            flow_line(&flow, Style::default()),
            "allow tcp acme/web 10.0.0.11:40112 (/usr/bin/storefront) -> acme/api 10.0.0.12:8080  by \
             acme/storefront-to-api at generation 3  services: mirror\n"
        );
        flow.verdict = Verdict::Deny;
        flow.source.process = None;
        flow.source.unknown = Some(UnknownReason::NoSocket);
        flow.source.address = "fd00::11".parse().unwrap();
        flow.decided_by = "acme/default".into();
        flow.because = Some("of this".into());
        flow.speaks = Some("http".into());
        flow.audited = vec!["acme/no-root".into()];
        flow.reason = Some("policy".into());
        assert_eq!(
            flow_line(&flow, Style::default()),
            "deny  tcp/http acme/web [fd00::11]:40112 (unknown: no-socket) -> acme/api 10.0.0.12:8080  by \
             acme/default at generation 3, because of this  services: mirror  audit: acme/no-root  dropped: policy\n"
        );
    }

    #[test]
    fn hostile_path_stays_on_its_line() {
        let mut flow = storefront();
        flow.source.process.as_mut().unwrap().exe = Some("/x\n\u{1b}[1Aallow".into());
        let shown = flow_line(&flow, Style::default());
        assert_eq!(shown.matches('\n').count(), 1);
        assert!(shown.contains(r"/x\n\x1b[1Aallow"), "{shown}");
    }
}
