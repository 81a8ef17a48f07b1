// SPDX-License-Identifier: Apache-2.0
//! Machines that come and go.

use std::io::Write;
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result};
use api::admin::{IntrospectionState, NicState};

use super::traffic::{API_V6, exchange, take_ipv6};
use crate::conversation::{STOREFRONT, Stream, attempt};
use crate::shop::{API, DB, NOTICE_LIMIT};
use crate::{Report, Shop};

/// One more machine; its VMM makes the socket and waits for us.
pub(super) const BATCH: &str = "\
# SPDX-License-Identifier: Apache-2.0
apiVersion: meshvisor.dev/v1alpha1
kind: VirtualMachine
metadata: {name: batch, tenant: acme, labels: {app: shop, tier: web}}
spec:
  nics:
  - name: net0
    socket: acme-batch.sock
    socketMode: Connect
    mac: \"02:6d:76:00:01:0e\"
    addresses: [10.0.0.14/24, \"fd00:6d76::14/64\"]
";

/// First words of a vhost-user conversation: GET_FEATURES, then a header that is cut off, a message that claims
/// to be huge, and noise.
const BROKEN_OFF: [&[u8]; 4] = [
    &[],
    &[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0],
    &[5, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0],
    &[0xa5; 300],
];

/// The database's machine dies without a word, its socket is abused, and it boots again.
pub(super) fn power_cut(shop: &mut Shop, report: &mut Report) -> Result<()> {
    let stream = Stream::start(shop, "acme/web", "bystander", STOREFRONT, API)?;
    let socket = shop.runtime().join("acme-db.sock");
    shop.cut_power("acme/db")?;
    report.check("the daemon sees it go", await_nic(shop, "acme/db", NicState::Waiting));

    for words in BROKEN_OFF {
        let mut line = UnixStream::connect(&socket).context("the port takes another VMM")?;
        // The daemon may hang up before everything is said, which is its good right.
        let _ = line.write_all(words);
    }
    report
        .check("VMMs that break off leave the port as it was", await_nic(shop, "acme/db", NicState::Waiting));

    shop.start("acme/db")?;
    shop.await_machine("acme/db")?;
    shop.serve_database()?;
    let answer = shop.vm("acme/api").run(&format!("/usr/bin/orders ask {DB} PING"))?.stdout;
    report.claim("booted again, it answers orders", answer == "answer +PONG", answer);
    report.check("a connection between two others never noticed", stream.finish(shop));
    Ok(())
}

/// A guest is reset in the middle of sending: the driver goes without a word, memory is wiped, another kernel comes.
pub(super) fn reset(shop: &mut Shop, report: &mut Report) -> Result<()> {
    let stream = Stream::start(shop, "acme/web", "bystander", STOREFRONT, API)?;
    let before = shop.introspection("globex/web")?;
    shop.vm("globex/web").background("flood", "ping -q -i 0.001 10.0.0.1")?;
    shop.reset("globex/web")?;
    let after = shop.introspection("globex/web")?;
    report.claim(
        "its new kernel, loaded elsewhere, is understood",
        after.state == IntrospectionState::Attached && after.kernel == before.kernel,
        after.kernel.clone().unwrap_or_default(),
    );
    let inits = shop.processes("globex/web")?.iter().filter(|process| process.pid == 1).count();
    report.claim("its processes are those of the new kernel", inits == 1, format!("{inits} of pid 1"));
    let pong = shop.vm("globex/web").run("ping -c 1 -W 2 10.0.0.1")?;
    report.claim("its card works", pong.success(), "the gateway answers");
    report.check("a connection between two others never noticed", stream.finish(shop));
    Ok(())
}

/// A machine by manifest, there and gone; meanwhile with a card that takes no offloads.
pub(super) fn join_and_leave(shop: &mut Shop, report: &mut Report) -> Result<()> {
    shop.write("60-batch.yaml", BATCH)?;
    shop.until(NOTICE_LIMIT, || Ok(shop.machine("acme/batch").ok())).context("the machine is not noticed")?;
    shop.start("acme/batch")?;
    shop.await_machine("acme/batch")?;
    let allowed = attempt(shop.vm("acme/batch"), "/usr/bin/storefront", API)?;
    report.check("the new machine takes part", allowed.connected());

    // Its card does nothing for it, the API's leaves all to its receiver: frames must be finished in between.
    take_ipv6(shop.vm("acme/batch"), "fd00:6d76::14")?;
    take_ipv6(shop.vm("acme/api"), "fd00:6d76::12")?;
    for to in [API, API_V6] {
        exchange(shop, "acme/batch", to, report)?;
    }

    // Left with an open connection, which must not trouble anyone else.
    Stream::start(shop, "acme/batch", "leaving", "/usr/bin/storefront", API)?;
    shop.remove("60-batch.yaml")?;
    let gone = shop.until(NOTICE_LIMIT, || Ok(shop.machine("acme/batch").is_err().then_some("")));
    report.check("removed from the manifests, it is removed from the switch", gone);
    let denied = attempt(shop.vm("acme/batch"), "/usr/bin/storefront", API)?;
    report.check("it reaches nobody any more", denied.not_connected());
    shop.cut_power("acme/batch")?;
    let storefront = attempt(shop.vm("acme/web"), "/usr/bin/storefront", API)?;
    report.check("the others go on", storefront.connected());
    Ok(())
}

/// Waits until a machine's card is in a state.
fn await_nic(shop: &Shop, id: &str, state: NicState) -> Result<&'static str> {
    let reached = shop.until(NOTICE_LIMIT, || {
        Ok(shop.machine(id)?.nics.iter().all(|nic| nic.state == state).then_some(""))
    });
    reached.with_context(|| format!("{:?}", shop.machine(id)))
}
