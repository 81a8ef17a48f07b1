// SPDX-License-Identifier: Apache-2.0
//! Names, asked for in all ways.

use std::net::UdpSocket;

use anyhow::{Context, Result};

use super::clients::{said, with_clients};
use super::comings::BATCH;
use crate::shop::NOTICE_LIMIT;
use crate::{Report, Shop};

/// What the upstream finds for every name.
const FOUND: &str = "192.0.2.77";

/// A service, and who may ask for names outside.
const MANIFESTS: &str = "\
# SPDX-License-Identifier: Apache-2.0
apiVersion: meshvisor.dev/v1alpha1
kind: Service
metadata: {name: page, tenant: acme}
spec:
  selector: {vm: {name: api}}
  ports: [{port: 8081, protocol: TCP}]
---
apiVersion: meshvisor.dev/v1alpha1
kind: AccessPolicy
metadata: {name: batch-asks-outside, tenant: acme}
spec:
  action: Allow
  from:
  - vm: {name: batch}
  to:
  - cidr: 169.254.1.53/32
    ports: [{port: 53, protocol: UDP}]
";

pub(super) fn run(shop: &mut Shop, report: &mut Report) -> Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0").context("make an upstream")?;
    let upstream = socket.local_addr()?;
    testkit::names::serve(socket, FOUND.parse()?);
    shop.write("60-batch.yaml", BATCH)?;
    shop.write("70-names.yaml", MANIFESTS)?;
    shop.restart_with(&format!("[dns]\nupstreams = [\"{upstream}\"]\n"))?;
    shop.start_as("acme/batch", with_clients)?;
    shop.await_machine("acme/batch")?;
    shop.await_networks()?;
    negatives(shop, report)?;
    ports_and_addresses(shop, report)?;
    outside(shop, report)?;
    shop.cut_power("acme/batch")?;
    shop.remove("60-batch.yaml")?;
    shop.remove("70-names.yaml")?;
    shop.restart_with("")?;
    shop.await_networks()
}

/// What is not there, and what a name does not have.
fn negatives(shop: &Shop, report: &mut Report) -> Result<()> {
    let batch = shop.vm("acme/batch");
    let told = said(batch, "cat /etc/resolv.conf")?;
    let expected = "search mesh.internal\nnameserver 169.254.1.53";
    report.claim("DHCP tells whom to ask and where to look", told == expected, told.replace('\n', ", "));
    for (question, status, zone) in [
        ("nobody.app.mesh.internal A", "NXDOMAIN", "app.mesh.internal."),
        ("page.tenant.mesh.internal MX", "NOERROR", "tenant.mesh.internal."),
    ] {
        let told = said(batch, &format!("dig +noall +comments +authority {question}"))?;
        let soa = told.lines().last().unwrap_or_default();
        let right =
            told.contains(&format!("status: {status},")) && soa.starts_with(zone) && soa.contains("SOA");
        report.claim(format!("dig {question}: {status} with the zone's SOA"), right, soa);
    }
    Ok(())
}

/// Ports, reverse names, EDNS, TCP, and whomever one asks.
fn ports_and_addresses(shop: &Shop, report: &mut Report) -> Result<()> {
    let batch = shop.vm("acme/batch");
    let told = said(batch, "dig +short _8081._tcp.page.tenant.mesh.internal SRV")?;
    report.claim("dig finds the port", told == "0 1 8081 page.tenant.mesh.internal.", told);
    let address = said(batch, "dig +short page.tenant.mesh.internal A")?;
    let told = said(batch, &format!("dig +short -x {address}"))?;
    report.claim("and the name behind the address", told == "page.tenant.mesh.internal.", told);
    for (how, means) in [
        ("+bufsize=1232", "with EDNS"),
        ("+noedns", "without"),
        ("+tcp", "over TCP"),
        ("+tcp +keepopen", "over TCP again"),
        ("@10.0.0.1", "of the gateway"),
        ("@198.51.100.53", "of somebody far away"),
        ("@198.51.100.53 +tcp", "of him over TCP"),
    ] {
        let found = said(batch, &format!("dig +short +time=2 +tries=1 {how} page.tenant.mesh.internal A"))?;
        report.claim(format!("the same {means}"), found == address, found);
    }
    let told = said(batch, "dig +bufsize=1232 page.mesh.internal A | grep EDNS")?;
    report.claim("EDNS is answered by EDNS", told.contains("udp: 1232"), told);
    Ok(())
}

/// Names outside the mesh, for those whom policy lets ask.
fn outside(shop: &Shop, report: &mut Report) -> Result<()> {
    let batch = shop.vm("acme/batch");
    for how in ["", "+tcp", "@198.51.100.53"] {
        let found = said(batch, &format!("dig +short {how} www.example.com A"))?;
        report.claim(format!("an upstream finds www.example.com {how}"), found == FOUND, found);
    }
    let refused = shop.until(NOTICE_LIMIT, || {
        let told = said(shop.vm("acme/web"), "nslookup www.example.com 2>&1")?;
        Ok(told.contains("REFUSED").then_some(last_line(&told)))
    });
    report.check("a machine that may not ask is refused", refused.context("web is not refused"));
    Ok(())
}

fn last_line(text: &str) -> String {
    text.lines().rfind(|line| !line.is_empty()).unwrap_or_default().to_owned()
}
