// SPDX-License-Identifier: Apache-2.0
//! The daemon dies and comes back; connections do not notice but for a pause.

use std::time::Instant;

use anyhow::Result;
use api::admin::NicState;

use crate::conversation::{STOREFRONT, Stream, attempt};
use crate::shop::{API, DB, NOTICE_LIMIT};
use crate::{Report, Shop};

/// Kills and restarts the daemon under two open conversations.
pub(super) fn run(shop: &mut Shop, report: &mut Report) -> Result<()> {
    let survivor = Stream::start(shop, "acme/web", "survivor", STOREFRONT, API)?;
    let killed = Instant::now();
    shop.daemon.kill()?;
    shop.daemon.restart()?;
    let back = killed.elapsed();
    report.claim("hostd is killed with SIGKILL and started again", true, format!("{} ms", back.as_millis()));

    for id in shop.names() {
        let running = shop.until(NOTICE_LIMIT, || {
            let machine = shop.machine(id)?;
            Ok(machine.nics.iter().all(|nic| nic.state == NicState::Running).then_some(()))
        });
        let after = killed.elapsed();
        report.check(
            format!("{id} is connected again"),
            running.map(|()| format!("{} ms after the kill", after.as_millis())),
        );
    }
    report.check("the open connection lived on, no line lost", survivor.finish(shop));

    let web = shop.vm("acme/web");
    let allowed = attempt(web, STOREFRONT, API)?;
    report.check("the storefront opens a new connection", allowed.connected());
    let denied = attempt(web, "in-service shop shop /usr/bin/intruder", API)?;
    report.check("an intruder is still refused at once", denied.refused_at_once());
    let answer = shop.vm("acme/api").run(&format!("/usr/bin/orders ask {DB} PING"))?;
    report.claim("orders still reach Redis", answer.stdout == "answer +PONG", answer.stdout);
    Ok(())
}
