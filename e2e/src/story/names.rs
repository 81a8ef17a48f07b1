// SPDX-License-Identifier: Apache-2.0
//! A name that means another service at another level.

use anyhow::Result;

use crate::{Report, Shop};

/// A page of the tenant, and one in its place for the storefront's machine.
const PAGES: &str = "\
# SPDX-License-Identifier: Apache-2.0
# The page of all machines of acme, and the next one, which exists for the storefront's machine alone.
apiVersion: meshvisor.dev/v1alpha1
kind: Service
metadata: {name: page, tenant: acme}
spec:
  selector: {vm: {name: api}}
  ports: [{port: 8081}]
---
apiVersion: meshvisor.dev/v1alpha1
kind: Service
metadata: {name: page-next, tenant: acme}
spec:
  hostname: page
  version: next
  level: instance
  application: shop
  visibleTo: {vm: {name: web}}
  selector: {vm: {name: db}}
  ports: [{port: 8081}]
---
apiVersion: meshvisor.dev/v1alpha1
kind: AccessPolicy
metadata: {name: pages-for-all, tenant: acme}
spec:
  action: Allow
  to: [{service: page}, {service: page-next}]
";

/// Who asks for the page, by which name, and what is read at the address that it is told.
const QUESTIONS: [(&str, &str, Option<&str>); 7] = [
    ("acme/web", "page", Some("the next page")),
    ("acme/web", "page.instance", Some("the next page")),
    ("acme/web", "page.tenant", Some("the page")),
    ("acme/api", "page", Some("the page")),
    ("acme/api", "page.instance", None),
    ("globex/web", "page", None),
    ("globex/web", "page.tenant", None),
];

/// One name leads to the innermost level that has it for whoever asks; machines ask with what they have.
pub(super) fn run(shop: &mut Shop, report: &mut Report) -> Result<()> {
    let mut servers = Vec::new();
    for (id, words) in [("acme/api", "the page"), ("acme/db", "the next page")] {
        let serve = format!("nc -ll -p 8081 -e sh -c 'read question; echo {words}'");
        servers.push((id, shop.vm(id).background("pages", &serve)?));
    }
    shop.put_in_force("60-pages.yaml", PAGES)?;
    for (id, name, page) in QUESTIONS {
        let (vm, name) = (shop.vm(id), format!("{name}.mesh.internal"));
        let told = vm.run(&format!("nslookup -type=a {name} 2>&1"))?.stdout;
        let last = told.lines().rfind(|line| !line.is_empty()).unwrap_or_default();
        let Some(page) = page else {
            report.claim(format!("for {id} there is no {name}"), last.contains("NXDOMAIN"), last);
            continue;
        };
        let address = last.strip_prefix("Address: ").unwrap_or_default();
        let read = vm.run(&format!("/usr/bin/storefront ask {address}:8081 page"))?.stdout;
        let is_read = read == format!("answer {page}");
        report.claim(format!("for {id} {name} is {page}"), is_read, format!("{address}: {read}"));
    }
    for (id, server) in servers {
        shop.vm(id).expect(&format!("kill {server}"))?;
    }
    shop.remove("60-pages.yaml")
}
