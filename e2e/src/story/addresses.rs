// SPDX-License-Identifier: Apache-2.0
//! Addresses by DHCP, and what the daemon found out about each guest when it came.

use anyhow::{Context, Result};

use crate::shop::LEASE_LIMIT;
use crate::{Report, Shop};

/// Each machine has the address that its manifest names, and is understood.
pub(super) fn run(shop: &mut Shop, report: &mut Report) -> Result<()> {
    let mut first = Vec::new();
    for id in shop.names() {
        let machine = shop.machine(id)?;
        let declared = machine.nics.first().and_then(|nic| nic.addresses.first());
        let declared = declared.context("a card has an address")?.split('/').next().unwrap_or_default();
        let leased = shop.vm(id).lease(LEASE_LIMIT)?;
        let found = machine.introspection;
        let release = shop.vm(id).expect("uname -r")?;
        let kernel = found.kernel.unwrap_or_default();
        let understood = kernel.contains(&release);
        let attach_ms = found.attach_ms.unwrap_or_default();
        report.claim(format!("{id} has {declared} by DHCP"), leased == declared, leased.clone());
        report.claim(
            format!("{id} runs Linux {release}, found out from its RAM in {attach_ms:.0} ms"),
            understood,
            if understood { String::new() } else { format!("RAM says {kernel:?}") },
        );
        first.push((id.to_owned(), leased));
    }
    let shared = first.iter().filter(|(_, address)| address == "10.0.0.12");
    let shared: Vec<&str> = shared.map(|(id, _)| id.as_str()).collect();
    report.claim("two machines have the same address", shared.len() == 2, shared.join(" and "));
    Ok(())
}
