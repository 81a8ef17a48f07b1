// SPDX-License-Identifier: Apache-2.0
//! Services and how their endpoints fare.

use api::admin::{EndpointStatus, Service};

use super::{Grid, Style, Tone, maybe, plain, span};

/// All services, a line for each endpoint.
pub(crate) fn services(services: &[Service], style: Style) -> String {
    let header = ["SERVICE", "LEVEL", "ADDRESS", "ENDPOINT", "STATE", "FLOWS", "TO ACCEPT"];
    let mut grid = Grid::new(style, &header, &[5, 6]);
    for service in services {
        let of_service =
            || vec![plain(&service.name), plain(&service.level), maybe(service.addresses.first())];
        for endpoint in &service.endpoints {
            let tone = if endpoint.state == "in" { Tone::Good } else { Tone::Notice };
            let mut row = of_service();
            row.extend([
                plain(&endpoint.vm),
                (state(endpoint), tone),
                plain(endpoint.flows),
                maybe(waiting(endpoint)),
            ]);
            grid.row(row);
        }
        if service.endpoints.is_empty() {
            let mut row = of_service();
            row.extend([("nobody".to_owned(), Tone::Bad), plain("-"), plain("-"), plain("-")]);
            grid.row(row);
        }
    }
    grid.finish("no services")
}

/// Whether an endpoint gets new flows, in a few words.
pub(super) fn state(endpoint: &EndpointStatus) -> String {
    let left = endpoint.left_ms.map(|ms| format!(" for {}", span(ms)));
    endpoint.state.clone() + &left.unwrap_or_default()
}

/// Connections that wait to be accepted, of how many.
pub(super) fn waiting(endpoint: &EndpointStatus) -> Option<String> {
    endpoint.accept_queue.map(|queue| format!("{} of {}", queue.len, u64::from(queue.max) + 1))
}

#[cfg(test)]
mod tests {
    use api::admin::AcceptQueue;

    use super::*;

    #[test]
    fn each_endpoint_has_a_line_that_says_why_it_is_out() {
        let endpoint = |vm: &str, state: &str, left_ms, accept_queue| EndpointStatus {
            vm: vm.into(),
            state: state.into(),
            left_ms,
            flows: 3,
            accept_queue,
        };
        let service = |name: &str, endpoints| Service {
            name: name.into(),
            level: "tenant".into(),
            addresses: vec![[10, 96, 0, 1].into()],
            endpoints,
        };
        let full = Some(AcceptQueue { len: 5, max: 4 });
        let shown = services(
            &[
                service(
                    "acme/api",
                    vec![
                        endpoint("acme/a", "in", None, None),
                        endpoint("acme/b", "queue-full", None, full),
                        endpoint("acme/c\n", "ejected", Some(8000), None),
                    ],
                ),
                service("acme/none", vec![]),
            ],
            Style::default(),
        );
        assert_eq!(
            shown,
            "\
SERVICE    LEVEL   ADDRESS    ENDPOINT  STATE           FLOWS  TO ACCEPT
acme/api   tenant  10.96.0.1  acme/a    in                  3          -
acme/api   tenant  10.96.0.1  acme/b    queue-full          3     5 of 5
acme/api   tenant  10.96.0.1  acme/c\\n  ejected for 8s      3          -
acme/none  tenant  10.96.0.1  nobody    -                   -          -
"
        );
    }
}
