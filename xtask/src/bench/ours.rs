// SPDX-License-Identifier: Apache-2.0
//! Our daemon as it ships, under a mesh made for the case.

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use api::admin::{Request, Response, Status};
use testkit::daemon::Daemon;
use testkit::guests::shipped;

use super::cases::{AclRule, Program, acl};
use super::pcap::{SERVER_PORT, SERVICE};
use super::testpmd::mac;

/// Entries of the flow table: the daemon's default, unless the case has more flows.
const CAPACITY_MIN: usize = 1 << 18;

/// Resources that fit one file.
const RESOURCES_PER_FILE: usize = 3000;

/// Starts the daemon with guests whose sockets are `sockets`, for that many flows.
///
/// # Errors
/// When it does not start.
pub fn start(dir: &Path, sockets: &[PathBuf], program: Program, flows: usize) -> Result<Daemon> {
    let (mesh, settings) = (dir.join("mesh"), dir.join("hostd.toml"));
    fs::create_dir_all(&mesh)?;
    for (number, part) in resources(sockets, program).chunks(RESOURCES_PER_FILE).enumerate() {
        fs::write(mesh.join(format!("{number}.yaml")), part.concat())?;
    }
    // Two entries a flow, and as many free.
    let capacity = (4 * flows).next_power_of_two().max(CAPACITY_MIN);
    fs::write(
        &settings,
        format!(
            "[introspection]\nenabled = false\n[poll]\ncpus = [1]\n\
             [flows]\ncapacity = {capacity}\nper_port_max = {capacity}\n\
             [dns]\nquestions_per_second_max = 1000000\n"
        ),
    )?;
    Daemon::start_with(&shipped("meshvisor-hostd"), &mesh, dir, Some(&settings))
}

/// The daemon's own numbers.
///
/// # Errors
/// When it does not answer.
pub fn status(daemon: &Daemon) -> Result<Status> {
    match daemon.ask(&Request::Status)? {
        Response::Status(status) => Ok(*status),
        other => bail!("the daemon answers {other:?}"),
    }
}

/// Both ways are allowed: the generator's two files start together, and whichever frame is first opens the flow.
/// The other file then holds the answers of the same flow.
fn resources(sockets: &[PathBuf], program: Program) -> Vec<String> {
    let mut resources = vec![resource("Tenant", "metadata: {name: bench}\n")];
    for (number, socket) in sockets.iter().enumerate() {
        let is_interactive = program == Program::Interactive && number >= 2;
        let class = if is_interactive { "Interactive" } else { "Standard" };
        resources.push(resource(
            "VirtualMachine",
            &format!(
                "metadata: {{name: vm{number}, tenant: bench}}\nspec:\n  nics: [{{name: net0, socket: {}, \
                 mac: '{}', addresses: [10.0.0.{}/16]}}]\n  qos: {{class: {class}}}\n",
                socket.display(),
                mac(number),
                number + 1
            ),
        ));
    }
    resources.push(policy("all", "{action: Allow}"));
    let rules = match program {
        Program::Forward | Program::Hop | Program::Track | Program::Interactive => return resources,
        Program::Acl { rules } => rules,
        Program::Service => {
            resources.push(service("s", &format!("{{port: {SERVER_PORT}, protocol: UDP}}"), Some(SERVICE)));
            return resources;
        }
        Program::Names { services } => {
            resources.extend((0..services).map(|number| service(&format!("s{number}"), "{port: 80}", None)));
            return resources;
        }
    };
    resources.extend(acl(rules).enumerate().map(|(number, rule)| {
        let AclRule { source_bits, destination_bits, destination, port, ports } = rule;
        let network = |bits: u8, rest: u16| {
            let address = 0x0a00_0000 | u32::from(rest);
            let kept = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            format!("{}/{bits}", Ipv4Addr::from_bits(address & kept))
        };
        let mut spec = String::from("{action: Deny, from: [{cidr: ");
        write!(
            spec,
            "{}}}], to: [{{cidr: {}, ports: [{{protocol: UDP, port: {port}, endPort: {}}}]}}]}}",
            network(source_bits, 1),
            network(destination_bits, destination),
            port + (ports - 1),
        )
        .expect("a string takes all");
        policy(&format!("p{number}"), &spec)
    }));
    resources
}

/// A service that the second guest serves, for the whole tenant.
fn service(name: &str, port: &str, address: Option<[u8; 4]>) -> String {
    let address = address.map(|address| format!(", addresses: [{}]", Ipv4Addr::from(address)));
    resource(
        "Service",
        &format!(
            "metadata: {{name: {name}, tenant: bench}}\nspec: {{selector: {{vm: {{name: vm1}}}}, ports: [{port}]{}}}\n",
            address.unwrap_or_default()
        ),
    )
}

fn policy(name: &str, spec: &str) -> String {
    resource("AccessPolicy", &format!("metadata: {{name: {name}, tenant: bench}}\nspec: {spec}\n"))
}

fn resource(kind: &str, rest: &str) -> String {
    format!("---\napiVersion: {}\nkind: {kind}\n{rest}", api::manifest::API_VERSION)
}
