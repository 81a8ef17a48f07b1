// SPDX-License-Identifier: Apache-2.0
//! Services that flow policies add: copies, other ways.

use anyhow::{Context, Result};
use testkit::vm::Vm;

use crate::conversation::{ORDERS, STOREFRONT, Stream, attempt, connections};
use crate::scenarios::traffic::{API_V6, take_ipv6};
use crate::shop::{API, NOTICE_LIMIT, START_LIMIT};
use crate::{Report, Shop};

/// Connections whose frames are copied.
const COPIED_CONNECTIONS: usize = 20;
/// Connections that are sent elsewhere.
const REDIRECTED_CONNECTIONS: usize = 50;
/// Sends what the storefront's machine asks of the API to another machine and port, and lets it be there.
const NEXT_API: &str = "\
# SPDX-License-Identifier: Apache-2.0
apiVersion: meshvisor.dev/v1alpha1
kind: FlowPolicy
metadata: {name: try-the-next-api, tenant: acme}
spec:
  from: [{vm: {labels: {tier: web}}}]
  to: [{vm: {name: api}, ports: [{port: 8080}]}]
  redirect: {vm: db, port: 8081}
---
apiVersion: meshvisor.dev/v1alpha1
kind: AccessPolicy
metadata: {name: storefront-to-next-api, tenant: acme}
spec:
  action: Allow
  from: [{process: {exe: /usr/bin/storefront}}]
  to: [{vm: {name: db}, ports: [{port: 8081}]}]
";

fn policy(name: &str, what: &str) -> String {
    format!(
        "# SPDX-License-Identifier: Apache-2.0\napiVersion: meshvisor.dev/v1alpha1\nkind: FlowPolicy\n\
         metadata: {{name: {name}, tenant: acme}}\nspec:\n  from:\n  - process: {{exe: /usr/bin/storefront}}\n  \
         to:\n  - service: api\n  {what}\n"
    )
}

/// A third machine gets copies.
pub(super) fn mirror(shop: &mut Shop, report: &mut Report) -> Result<()> {
    shop.put_in_force("60-watch.yaml", &policy("watch", "mirror: {vm: db}"))?;
    let received = |shop: &Shop| -> Result<u64> {
        let ports = shop.status()?.ports;
        let card = ports.iter().find(|port| port.nic.starts_with("acme/db/"));
        Ok(card.context("the collector has a card")?.inbound_frames)
    };
    let before = received(shop)?;
    shop.vm("acme/web").run(&format!("/usr/bin/storefront connect {API} {COPIED_CONNECTIONS}"))?;
    let copied = received(shop)? - before;
    // A handshake alone has three frames.
    let claim = format!("{COPIED_CONNECTIONS} connections of others reach the collector's card");
    report.claim(claim, copied >= 3 * COPIED_CONNECTIONS as u64, format!("{copied} frames"));
    shop.remove("60-watch.yaml")
}

/// Another machine answers in an API's place, and nobody who calls notices.
pub(super) fn redirect(shop: &mut Shop, report: &mut Report) -> Result<()> {
    let (web, db) = (shop.vm("acme/web"), shop.vm("acme/db"));
    take_ipv6(web, "fd00:6d76::11")?;
    take_ipv6(db, "fd00:6d76::13")?;
    let next = db.background("next-api", &format!("{ORDERS} serve 8081"))?;
    db.await_line("next-api", "serving", START_LIMIT)?;
    let earlier = Stream::start(shop, "acme/web", "earlier", STOREFRONT, API)?;

    shop.put_in_force("60-next.yaml", NEXT_API)?;
    for to in [API, API_V6] {
        let printed =
            shop.vm("acme/web").run(&format!("{STOREFRONT} connect {to} {REDIRECTED_CONNECTIONS}"))?;
        let answered = connections(&printed.stdout);
        let claim =
            format!("{REDIRECTED_CONNECTIONS} of {REDIRECTED_CONNECTIONS} calls to {to} are answered");
        report.claim(claim, answered == REDIRECTED_CONNECTIONS, answered);
    }
    let refused = attempt(shop.vm("acme/web"), "/usr/bin/intruder", API)?.refused_at_once();
    report.check("a program that may not call the other machine is refused", refused);
    let later = Stream::start(shop, "acme/web", "later", STOREFRONT, API)?;
    let peers = established(shop.vm("acme/db"), 8081)?;
    let claim = "the other machine has the connection, from the caller's own address";
    report.claim(claim, peers.len() == 1 && peers[0].starts_with("10.0.0.11:"), peers.join(", "));
    report.check("what was open before stays where it was, and loses no line", earlier.finish(shop));

    shop.remove("60-next.yaml")?;
    let last = later.await_end(shop, NOTICE_LIMIT)?;
    report.claim("without the policy, what would go elsewhere now is ended", last.starts_with("reset"), last);
    report.check(
        "and a new call is answered by the API",
        attempt(shop.vm("acme/web"), "/usr/bin/storefront", API)?.connected(),
    );
    let left = established(shop.vm("acme/db"), 8081)?;
    report.claim("nothing is left at the other machine", left.is_empty(), format!("{left:?}"));
    shop.vm("acme/db").expect(&format!("kill {next}")).map(drop)
}

/// Who is connected to a port of a machine, by the machine's own list.
fn established(vm: &Vm, port: u16) -> Result<Vec<String>> {
    let listed = vm.expect("netstat -tn")?;
    let lines = listed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let peers = lines.filter_map(|words| {
        let [_, _, _, local, peer, "ESTABLISHED"] = words[..] else { return None };
        local.ends_with(&format!(":{port}")).then(|| peer.trim_start_matches("::ffff:").to_owned())
    });
    Ok(peers.collect())
}
