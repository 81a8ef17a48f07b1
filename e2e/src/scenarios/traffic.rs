// SPDX-License-Identifier: Apache-2.0
//! Other protocols, large frames, many connections.

use anyhow::{Context, Result};
use testkit::vm::Vm;

use crate::conversation::attempt;
use crate::shop::API;
use crate::{Report, Shop};

/// The API's address in the other family.
pub(super) const API_V6: &str = "[fd00:6d76::12]:8080";
/// Lets the storefront send datagrams to the API as well.
const DATAGRAMS: &str = "\
# SPDX-License-Identifier: Apache-2.0
apiVersion: meshvisor.dev/v1alpha1
kind: AccessPolicy
metadata: {name: datagrams-to-api, tenant: acme}
spec:
  action: Allow
  from:
  - process: {exe: /usr/bin/storefront}
  to:
  - application: shop
    ports: [{port: 8080, protocol: UDP}]
";
/// Data sent, and as much again received.
const BULK_MIB: u32 = 24;
/// Connections opened in a row.
const CONNECTIONS: usize = 200;

/// The same two programs, the same two verdicts.
pub(super) fn protocols(shop: &mut Shop, report: &mut Report) -> Result<()> {
    let (web, api) = (shop.vm("acme/web"), shop.vm("acme/api"));
    take_ipv6(web, "fd00:6d76::11")?;
    take_ipv6(api, "fd00:6d76::12")?;
    report.check("storefront by IPv6 is connected", attempt(web, "/usr/bin/storefront", API_V6)?.connected());
    report.check(
        "an intruder by IPv6 is refused",
        attempt(web, "/usr/bin/intruder", API_V6)?.refused_at_once(),
    );

    shop.put_in_force("50-datagrams.yaml", DATAGRAMS)?;
    let answer = web.run(&format!("/usr/bin/storefront datagram {API} hello"))?.stdout;
    report.claim("storefront's datagram is answered", answer == "answer hello", answer);
    let refused = web.run(&format!("/usr/bin/intruder datagram {API} hello"))?.stdout;
    report.claim("an intruder's is refused, and it is told so", refused == "unreachable", refused);
    shop.remove("50-datagrams.yaml").map(drop)
}

/// Gives a machine its IPv6 address, unless it has it. An address must have proved unique before it is used.
pub(super) fn take_ipv6(vm: &Vm, address: &str) -> Result<()> {
    vm.expect(&format!(
        "ip address show dev eth0 | grep -q {address}/ || ip address add {address}/64 dev eth0; \
         until ! ip address show dev eth0 | grep -q tentative; do usleep 50000; done"
    ))
    .map(drop)
}

/// With checksums left to the receiver, and segments larger than the link's packets.
pub(super) fn bulk(shop: &mut Shop, report: &mut Report) -> Result<()> {
    exchange(shop, "acme/web", API, report)
}

/// Has a machine send much to an API, which sends it back.
pub(super) fn exchange(shop: &Shop, from: &str, to: &str, report: &mut Report) -> Result<()> {
    let sent = bulk_from(shop.vm(from), to)?;
    let claim = format!("{BULK_MIB} MiB from {from} to {to} come back as they were sent");
    report.claim(claim, sent.starts_with("whole "), sent);
    Ok(())
}

/// What a machine says of having sent much to an API and back.
pub(super) fn bulk_from(vm: &Vm, to: &str) -> Result<String> {
    Ok(vm.run(&format!("/usr/bin/storefront bulk {to} {BULK_MIB}"))?.stdout)
}

/// None is refused for being too quick to be attributed, and none is lost between the card's queue pairs.
pub(super) fn many(shop: &mut Shop, report: &mut Report) -> Result<()> {
    let queues = shop.vm("acme/web").expect("ls -d /sys/class/net/eth0/queues/rx-* | wc -l")?;
    report.claim("the storefront's card has two queue pairs", queues == "2", &queues);
    let web = shop.vm("acme/web");
    let printed = web.run(&format!("/usr/bin/storefront connect {API} {CONNECTIONS}"))?.stdout;
    let mut times_us: Vec<u64> = Vec::new();
    for line in printed.lines().filter(|line| line.starts_with("connected ")) {
        let time = line.split(' ').find_map(|word| word.strip_prefix("after_us="));
        times_us.push(time.context("the guest says how long it took")?.parse()?);
    }
    times_us.sort_unstable();
    let at = |percent: usize| times_us.get(times_us.len() * percent / 100).copied().unwrap_or_default();
    report.claim(
        format!("{CONNECTIONS} of {CONNECTIONS} connections are allowed"),
        times_us.len() == CONNECTIONS,
        format!("{}, in the guest p50 {} us, p99 {} us", times_us.len(), at(50), at(99)),
    );
    let printed = web.run(&format!("/usr/bin/intruder connect {API} {CONNECTIONS}"))?.stdout;
    let refused = printed.lines().filter(|line| line.starts_with("refused ")).count();
    let claim = format!("{CONNECTIONS} of {CONNECTIONS} of an intruder are refused");
    report.claim(claim, refused == CONNECTIONS, refused);
    Ok(())
}
