// SPDX-License-Identifier: Apache-2.0
//! Real machines under the daemon as it ships, for cases that are not about frames alone.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use api::admin::{IntrospectionState, Request, Response, Status, Vm as Machine};
use testkit::accel;
use testkit::daemon::Daemon;
use testkit::guests::{GuestKernel, shipped};
use testkit::scratch::Scratch;
use testkit::vm::{BOOT_LIMIT, Cpu, NicModel, NicSpec, SocketRole, Vm, VmSpec};

use super::testpmd::mac;

/// Time for a machine to be served and understood.
pub(super) const READY_LIMIT: Duration = Duration::from_secs(60);

/// The daemon with the machines of one case.
pub(super) struct World {
    // Machines end before the daemon, and both before their files go.
    pub(super) vms: Vec<Vm>,
    pub(super) daemon: Daemon,
    /// Of all machines, in the order of their numbers.
    names: Vec<&'static str>,
    scratch: Scratch,
}

impl World {
    /// The daemon with these machines of tenant `bench`, each with its labels, and these rules. None is booted yet; the
    /// first has the address 10.0.0.1, and so on.
    pub(super) fn start(machines: &[(&'static str, &str)], rules: &str) -> Result<Self> {
        let scratch = Scratch::new("bench")?;
        let mesh = scratch.join("mesh");
        fs::create_dir(&mesh)?;
        let manifests: String =
            (0..).zip(machines).map(|(place, (name, labels))| manifest(place, name, labels)).collect();
        fs::write(mesh.join("machines.yaml"), format!("{TENANT}{manifests}"))?;
        fs::write(mesh.join("rules.yaml"), rules)?;
        let daemon = Daemon::start(&shipped("meshvisor-hostd"), &mesh, scratch.path())?;
        let names = machines.iter().map(|(name, _)| *name).collect();
        Ok(Self { vms: Vec::new(), daemon, names, scratch })
    }

    /// Boots a machine of the mesh and waits until the daemon understands it.
    pub(super) fn boot(&mut self, name: &str, kernel: GuestKernel, memory_mib: u32) -> Result<()> {
        let place = self.names.iter().position(|one| *one == name);
        let place = place.with_context(|| format!("the mesh has no machine {name}"))?;
        let nic = NicSpec {
            model: NicModel::VirtioNet,
            mac: mac(place).parse()?,
            socket: self.scratch.join(format!("{name}.sock")),
            role: SocketRole::Connects,
            queue_pairs: 1,
            properties: "",
        };
        let accel = accel::choose()?.accel;
        let spec =
            VmSpec { kernel, cpu: Cpu::Qemu64, memory_mib, nic: Some(nic), ..VmSpec::new(name, accel) };
        let mut vm = Vm::start(spec, self.scratch.path())?;
        vm.ready(BOOT_LIMIT)?;
        vm.lease(READY_LIMIT)?;
        self.vms.push(vm);
        self.attached(name).map(drop)
    }

    /// Waits until a machine is attached to; tells how long that took, in milliseconds.
    pub(super) fn attached(&self, name: &str) -> Result<f64> {
        let deadline = Instant::now() + READY_LIMIT;
        loop {
            let seen = self.machine(name)?.introspection;
            match (seen.state, seen.attach_ms) {
                (IntrospectionState::Attached, Some(took)) => return Ok(took),
                (IntrospectionState::Failed, _) => bail!("{name} is not understood: {:?}", seen.reason),
                _ if Instant::now() > deadline => bail!("{name} is not understood in {READY_LIMIT:?}"),
                _ => std::thread::park_timeout(Duration::from_millis(20)),
            }
        }
    }

    fn machine(&self, name: &str) -> Result<Machine> {
        let Response::Vms(vms) = self.daemon.ask(&Request::VmList)? else { bail!("not a list of machines") };
        vms.into_iter().find(|vm| vm.name == name).with_context(|| format!("the daemon knows no {name}"))
    }

    pub(super) fn status(&self) -> Result<Status> {
        super::ours::status(&self.daemon)
    }

    /// Kills the daemon and starts it again: its figures begin anew.
    pub(super) fn restart(&mut self) -> Result<()> {
        self.daemon.kill()?;
        self.daemon.restart()?;
        for vm in &self.vms {
            self.attached(vm.name())?;
        }
        Ok(())
    }
}

const TENANT: &str = "\
apiVersion: meshvisor.dev/v1alpha1
kind: Tenant
metadata: {name: bench}
";

fn manifest(place: usize, name: &str, labels: &str) -> String {
    let (mac, number) = (mac(place), place + 1);
    format!(
        "---
apiVersion: meshvisor.dev/v1alpha1
kind: VirtualMachine
metadata: {{name: {name}, tenant: bench, labels: {{{labels}}}}}
spec:
  nics: [{{name: net0, socket: {name}.sock, mac: '{mac}', addresses: [10.0.0.{number}/24]}}]
"
    )
}
