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

/// A page that is another one for the machine `batch`, and whom policy lets have it.
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
kind: Service
metadata: {name: page-next, tenant: acme}
spec:
  hostname: page
  version: next
  level: instance
  application: shop
  visibleTo: {vm: {name: batch}}
  selector: {vm: {name: db}}
  ports: [{port: 8081, protocol: TCP}]
---
apiVersion: meshvisor.dev/v1alpha1
kind: AccessPolicy
metadata: {name: pages-for-all, tenant: acme}
spec:
  action: Allow
  to:
  - service: page
  - service: page-next
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
    for (id, words) in [("acme/api", "the page"), ("acme/db", "the next page")] {
        let pages = format!("mkdir -p /tmp/pages && echo {words} >/tmp/pages/index.html");
        shop.vm(id).expect(&pages)?;
        shop.vm(id).background("pages", "httpd -f -p 8081 -h /tmp/pages")?;
    }
    names(shop, report)?;
    negatives(shop, report)?;
    ports_and_addresses(shop, report)?;
    outside(shop, report)?;
    for id in ["acme/api", "acme/db"] {
        shop.vm(id).expect("killall httpd")?;
    }
    shop.cut_power("acme/batch")?;
    shop.remove("60-batch.yaml")?;
    shop.remove("70-names.yaml")?;
    shop.restart_with("")?;
    shop.await_networks()
}

/// One name, two levels, and one tenant that has neither.
fn names(shop: &Shop, report: &mut Report) -> Result<()> {
    let batch = shop.vm("acme/batch");
    let told = said(batch, "cat /etc/resolv.conf")?;
    let expected = "search mesh.internal\nnameserver 169.254.1.53";
    report.claim("DHCP tells whom to ask and where to look", told == expected, told.replace('\n', ", "));
    for name in ["page", "page.mesh.internal", "page.instance.mesh.internal"] {
        let found = said(batch, &format!("getent ahostsv4 {name} | head -n 1"))?;
        report.claim(format!("getent finds {name} at instance level"), found.starts_with("100.99."), found);
    }
    let found = said(batch, "getent ahostsv4 page.tenant.mesh.internal | head -n 1")?;
    report.claim("and the tenant's beside it", found.starts_with("100.97."), found);
    // Both kernels; busybox asks for itself.
    for id in ["acme/web", "acme/api"] {
        let found = said(shop.vm(id), "nslookup page.mesh.internal")?;
        let right = found.contains("100.97.") && !found.contains("100.99.");
        report.claim(format!("nslookup in {id} finds the tenant's only"), right, last_address(&found));
        let hidden = said(shop.vm(id), "nslookup page.instance.mesh.internal 2>&1")?;
        report.claim("what is for another is not there", hidden.contains("NXDOMAIN"), last_line(&hidden));
    }
    let foreign = said(shop.vm("globex/web"), "nslookup page.mesh.internal 2>&1")?;
    report.claim("nor is anything of another tenant", foreign.contains("NXDOMAIN"), last_line(&foreign));
    Ok(())
}

/// What is not there, and what a name does not have.
fn negatives(shop: &Shop, report: &mut Report) -> Result<()> {
    let batch = shop.vm("acme/batch");
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

fn last_address(text: &str) -> String {
    text.lines().rfind(|line| line.starts_with("Address")).unwrap_or_default().to_owned()
}
