// SPDX-License-Identifier: Apache-2.0
//! The world of the scenarios: one daemon, four machines of two tenants, and the programs that run in them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use api::admin::{
    Explanation, Flow, Introspection, IntrospectionState, NicState, PolicyStatus, Process, Request, Response,
    Status,
};
use testkit::accel::Accel;
use testkit::daemon::Daemon;
use testkit::guests::{GuestKernel, shipped};
use testkit::scratch::Scratch;
use testkit::vm::{BOOT_LIMIT, Cpu, NicModel, NicSpec, SocketRole, Vm, VmSpec};

/// Time for DHCP: a lost answer is asked for again after a second.
pub const LEASE_LIMIT: Duration = Duration::from_secs(20);
/// Time for a program in a guest to start serving.
pub const START_LIMIT: Duration = Duration::from_secs(20);
/// Time for the daemon to notice something, such as a changed file.
pub const NOTICE_LIMIT: Duration = Duration::from_secs(10);
/// Pause between two questions to the daemon while waiting for it to notice.
const ASK_AGAIN: Duration = Duration::from_millis(2);

/// What a machine of the shop is like, besides what its manifest says.
struct Machine {
    id: &'static str,
    kernel: GuestKernel,
    cpu: Cpu,
    /// Processors, and as many queue pairs.
    processors: u8,
    /// Properties of its card.
    card: &'static str,
}

impl Machine {
    const fn new(
        id: &'static str,
        kernel: GuestKernel,
        cpu: Cpu,
        processors: u8,
        card: &'static str,
    ) -> Self {
        Self { id, kernel, cpu, processors, card }
    }
}

/// Every kernel, page tables of four and five levels, split and packed rings, one queue pair and several.
const MACHINES: [Machine; 6] = [
    Machine::new("acme/web", GuestKernel::V6_1, Cpu::Qemu64, 2, ""),
    Machine::new("acme/api", GuestKernel::V6_12, Cpu::Max, 1, "packed=on"),
    Machine::new("acme/db", GuestKernel::V6_1, Cpu::Max, 1, "packed=on"),
    Machine::new("globex/web", GuestKernel::V6_12, Cpu::Qemu64, 1, ""),
    // Not in the example: scenarios add them.
    Machine::new("acme/batch", GuestKernel::V6_1, Cpu::Qemu64, 1, PLAIN),
    Machine::new("acme/report", GuestKernel::V6_12, Cpu::Qemu64, 1, ""),
];
/// A card whose driver does everything itself, one buffer to a frame.
const PLAIN: &str = "csum=off,gso=off,host_tso4=off,host_tso6=off,host_ecn=off,host_ufo=off,\
    guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off,mrg_rxbuf=off";
/// How many of them the example names.
const EXAMPLE_MACHINES: usize = 4;

/// Where the storefront reaches the API.
pub const API: &str = "10.0.0.12:8080";
/// Where orders reach the database.
pub const DB: &str = "10.0.0.13:6379";

const SETTINGS_FILE: &str = "settings.toml";
/// Settings of the daemon, unless a scenario has others.
const SETTINGS: &str = "[introspection]\nthreats = true\n";

/// The running world. Everything goes away with it.
#[derive(Debug)]
pub struct Shop {
    // Machines end before the daemon, and both before their files go.
    vms: BTreeMap<String, Vm>,
    /// The daemon under them.
    pub daemon: Daemon,
    /// How guests' code is run.
    pub accel: Accel,
    /// Where files go.
    pub scratch: Scratch,
}

impl Shop {
    /// Starts the daemon on a copy of `examples/shop`, boots the machines it names, and starts their programs.
    ///
    /// # Errors
    /// When anything does not come up; the error holds the logs that say why.
    pub fn open(accel: Accel) -> Result<Self> {
        let example: Vec<&str> = MACHINES.iter().take(EXAMPLE_MACHINES).map(|machine| machine.id).collect();
        let shop = Self::open_with(accel, &example)?;
        shop.serve_database()?;
        Ok(shop)
    }

    /// As [`Shop::open`] with some of the machines, the API's among them, and no database.
    ///
    /// # Errors
    /// As [`Shop::open`].
    pub fn open_with(accel: Accel, machines: &[&str]) -> Result<Self> {
        let mut shop = Self::bare(accel, SETTINGS)?;
        // All start at once; they are waited for one after the other.
        for id in machines {
            shop.start(id)?;
        }
        let named = MACHINES.iter().filter(|machine| machines.contains(&machine.id));
        for Machine { id, kernel, cpu, processors, card } in named {
            let started = Instant::now();
            shop.await_machine(id)?;
            let levels = if *cpu == Cpu::Max { "five" } else { "four" };
            let rings = if card.contains("packed=on") { "packed" } else { "split" };
            let more = started.elapsed().as_secs_f64();
            println!(
                "   {id} is up: Linux {}, page tables of {levels} levels, {processors} x {rings} rings (+{more:.1} s)",
                kernel.name()
            );
        }
        shop.serve_api()?;
        Ok(shop)
    }

    /// Starts the daemon on a copy of `examples/shop` with `settings` in TOML, and no machine.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn bare(accel: Accel, settings: &str) -> Result<Self> {
        let scratch = Scratch::new("shop")?;
        let (manifests, runtime) = (scratch.join("manifests"), scratch.join("run"));
        copy_example(&manifests)?;
        fs::create_dir(&runtime).context("make the runtime folder")?;
        let file = scratch.join(SETTINGS_FILE);
        fs::write(&file, settings).context("write the settings")?;
        let daemon = Daemon::start_with(&shipped("meshvisor-hostd"), &manifests, &runtime, Some(&file))?;
        Ok(Self { vms: BTreeMap::new(), daemon, accel, scratch })
    }

    /// Kills the daemon and starts it again with these settings beside the usual ones.
    ///
    /// # Errors
    /// When it does not come up again.
    pub fn restart_with(&mut self, settings: &str) -> Result<()> {
        let settings = format!("{SETTINGS}{settings}");
        fs::write(self.scratch.join(SETTINGS_FILE), settings).context("write the settings")?;
        self.daemon.kill()?;
        self.daemon.restart()
    }

    /// Starts one of the machines by its name, and does not wait for it.
    ///
    /// # Errors
    /// When QEMU does not start.
    pub fn start(&mut self, id: &str) -> Result<()> {
        self.start_as(id, |spec| spec)
    }

    /// As [`Shop::start`], with a machine that is other than usual.
    ///
    /// # Errors
    /// As [`Shop::start`].
    pub fn start_as(&mut self, id: &str, other: impl FnOnce(VmSpec) -> VmSpec) -> Result<()> {
        let machine = MACHINES.into_iter().find(|machine| machine.id == id);
        let machine = machine.with_context(|| format!("no machine is called {id}"))?;
        let Machine { kernel, cpu, processors, card, .. } = machine;
        let loaded = api::manifest::load(&[self.manifests()]);
        let manifests = loaded.map_err(|diagnostics| anyhow::anyhow!("{diagnostics:?}"))?;
        let mut all = manifests.inventory().vms();
        let (_, vm) = all.find(|(_, vm)| vm.id.to_string() == id).context("it is not in the manifests")?;
        let nic = vm.nics.first().context("it has no network card")?;
        let role = match nic.socket_mode {
            model::SocketMode::Listen => SocketRole::Connects,
            model::SocketMode::Connect => SocketRole::Listens,
        };
        let nic = NicSpec {
            model: NicModel::VirtioNet,
            mac: nic.mac,
            socket: self.runtime().join(&nic.socket),
            role,
            queue_pairs: processors,
            properties: card,
        };
        let name = id.replace('/', "-");
        let spec = VmSpec {
            kernel,
            cpu,
            processors,
            nic: Some(nic),
            reboots: true,
            ..VmSpec::new(&name, self.accel)
        };
        let vm = Vm::start(other(spec), self.scratch.path())?;
        self.vms.insert(id.to_owned(), vm);
        Ok(())
    }

    /// Waits until a machine's shell answers, its card runs and its kernel is understood.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn await_machine(&mut self, id: &str) -> Result<()> {
        let daemon = self.daemon.report();
        self.vms.get_mut(id).context("it was started")?.ready(BOOT_LIMIT).context(daemon)?;
        self.await_network(id)
    }

    /// Waits until a booted machine has its address, its card runs and its kernel is understood.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn await_network(&self, id: &str) -> Result<()> {
        self.vm(id).lease(LEASE_LIMIT).with_context(|| format!("{id} got no address\n{}", self.reports()))?;
        let understood = self.until(NOTICE_LIMIT, || {
            let vm = self.machine(id)?;
            let running = vm.nics.iter().all(|nic| nic.state == NicState::Running);
            Ok((running && vm.introspection.state == IntrospectionState::Attached).then_some(()))
        });
        understood.with_context(|| format!("{id} is not understood: {:?}", self.machine(id)))
    }

    /// Waits until all machines are served and understood again, after the daemon was started anew.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn await_networks(&self) -> Result<()> {
        self.vms.keys().try_for_each(|id| self.await_network(id))
    }

    /// Presses one machine's reset button and waits until it is back, served and understood.
    ///
    /// # Errors
    /// When it does not come back.
    pub fn reset(&mut self, id: &str) -> Result<()> {
        let daemon = self.daemon.report();
        let vm = self.vms.get_mut(id).with_context(|| format!("{id} is not running"))?;
        vm.reset().context(daemon)?;
        self.await_network(id)
    }

    /// Moves one machine, while it runs, to the daemon that has its sockets in `runtime`. `meanwhile` happens while its
    /// memory is being copied. Returns how many pages of memory did not arrive as they were.
    ///
    /// # Errors
    /// When it does not get there.
    pub fn migrate(
        &mut self,
        id: &str,
        runtime: &Path,
        meanwhile: impl FnOnce(&Self, &Vm) -> Result<()>,
    ) -> Result<usize> {
        let socket = format!("{}.sock", id.replace('/', "-"));
        let mut vm = self.vms.remove(id).with_context(|| format!("{id} is not running"))?;
        let moved = vm.migrate(&runtime.join(socket), |vm| meanwhile(self, vm));
        self.vms.insert(id.to_owned(), vm);
        moved
    }

    /// Ends one machine as a power cut would.
    ///
    /// # Errors
    /// When it was not running.
    pub fn cut_power(&mut self, id: &str) -> Result<()> {
        self.vms.remove(id).with_context(|| format!("{id} is not running"))?.kill()
    }

    /// Starts the API's server.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn serve_api(&self) -> Result<()> {
        let api = self.vm("acme/api");
        api.background("orders", "in-service orders orders /usr/bin/orders serve 8080")?;
        api.await_line("orders", "serving", START_LIMIT).map(drop)
    }

    /// Starts the database, a real Redis.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn serve_database(&self) -> Result<()> {
        let db = self.vm("acme/db");
        db.background(
            "redis",
            "in-service redis redis /usr/bin/redis-server --port 6379 --save '' --protected-mode no",
        )?;
        db.await_line("redis", ".*Ready to accept connections", START_LIMIT).map(drop)
    }

    /// A running machine.
    ///
    /// # Panics
    /// When there is none of that name: a mistake in a scenario.
    #[must_use]
    pub fn vm(&self, id: &str) -> &Vm {
        self.vms.get(id).unwrap_or_else(|| panic!("no machine {id} is running"))
    }

    /// Names of the running machines.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.vms.keys().map(String::as_str)
    }

    /// What the daemon says of a machine.
    ///
    /// # Errors
    /// When it knows none of that name.
    pub fn machine(&self, id: &str) -> Result<api::admin::Vm> {
        let Response::Vms(vms) = self.ask(&Request::VmList)? else { bail!("not a list of machines") };
        let found = vms.into_iter().find(|vm| format!("{}/{}", vm.tenant, vm.name) == id);
        found.with_context(|| format!("the daemon knows no {id}"))
    }

    /// What introspection says of a machine.
    ///
    /// # Errors
    /// As [`Shop::machine`].
    pub fn introspection(&self, id: &str) -> Result<Introspection> {
        Ok(self.machine(id)?.introspection)
    }

    /// A machine's processes as its RAM shows them.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn processes(&self, id: &str) -> Result<Vec<Process>> {
        match self.ask(&Request::VmProcesses { vm: id.into() })? {
            Response::Processes(processes) => Ok(processes),
            other => bail!("not a list of processes: {other:?}"),
        }
    }

    /// Flows with a machine at one end.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn flows(&self, id: &str) -> Result<Vec<Flow>> {
        match self.ask(&Request::FlowList { vm: Some(id.into()) })? {
            Response::Flows(flows) => Ok(flows),
            other => bail!("not a list of flows: {other:?}"),
        }
    }

    /// Why a program's connections from a machine are allowed or denied.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn why(&self, from: &str, to: &str, exe: &str) -> Result<Explanation> {
        let (from, to, protocol) = (from.to_owned(), to.to_owned(), "tcp".to_owned());
        match self.ask(&Request::Why { from, to, protocol, exe: Some(exe.to_owned()) })? {
            Response::Explanation(explanation) => Ok(*explanation),
            other => bail!("not an explanation: {other:?}"),
        }
    }

    /// The daemon's health.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn status(&self) -> Result<Status> {
        match self.ask(&Request::Status)? {
            Response::Status(status) => Ok(*status),
            other => bail!("not a status: {other:?}"),
        }
    }

    /// What policy is in force.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn policy(&self) -> Result<PolicyStatus> {
        match self.ask(&Request::PolicyStatus)? {
            Response::PolicyStatus(status) => Ok(*status),
            other => bail!("not a policy status: {other:?}"),
        }
    }

    /// What the daemon answers.
    ///
    /// # Errors
    /// When it does not answer, or refuses.
    pub fn ask(&self, request: &Request) -> Result<Response> {
        self.daemon.ask(request)
    }

    /// Asks again until there is an answer.
    ///
    /// # Errors
    /// When there is none within `limit`.
    pub fn until<T>(&self, limit: Duration, mut question: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(answer) = question()? {
                return Ok(answer);
            }
            if Instant::now() > deadline {
                bail!("not within {limit:?}");
            }
            std::thread::park_timeout(ASK_AGAIN);
        }
    }

    /// Replaces text in one of the manifests, in one step as an editor does. Returns when the daemon may see it.
    ///
    /// # Errors
    /// When the text is not there exactly once.
    pub fn edit(&self, file: &str, from: &str, to: &str) -> Result<Instant> {
        let text = fs::read_to_string(self.manifests().join(file)).with_context(|| format!("read {file}"))?;
        if text.matches(from).count() != 1 {
            bail!("{file} does not contain `{from}` exactly once");
        }
        self.write(file, &text.replacen(from, to, 1))
    }

    /// Writes a manifest, in one step as an editor does. Returns when the daemon may see it.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn write(&self, file: &str, text: &str) -> Result<Instant> {
        let (path, partial) = (self.manifests().join(file), self.manifests().join(format!(".{file}.new")));
        fs::write(&partial, text).with_context(|| format!("write {file}"))?;
        let visible = Instant::now();
        fs::rename(&partial, &path).with_context(|| format!("replace {file}"))?;
        Ok(visible)
    }

    /// Writes a manifest and waits until it is in force.
    ///
    /// # Errors
    /// When the file system refuses, or the daemon does not take it up.
    pub fn put_in_force(&self, file: &str, text: &str) -> Result<()> {
        let generation = self.policy()?.generation;
        self.write(file, text)?;
        self.until(NOTICE_LIMIT, || Ok((self.policy()?.generation > generation).then_some(())))
            .with_context(|| format!("{file} is not in force: {:?}", self.policy()))
    }

    /// Removes a manifest.
    ///
    /// # Errors
    /// When it is not there.
    pub fn remove(&self, file: &str) -> Result<()> {
        fs::remove_file(self.manifests().join(file)).with_context(|| format!("remove {file}"))
    }

    /// The daemon's copy of the example.
    #[must_use]
    pub fn manifests(&self) -> PathBuf {
        self.scratch.join("manifests")
    }

    /// The daemon's sockets.
    #[must_use]
    pub fn runtime(&self) -> PathBuf {
        self.scratch.join("run")
    }

    /// For a failure report: the ends of all logs.
    #[must_use]
    pub fn reports(&self) -> String {
        let mut reports: Vec<String> = self.vms.values().map(Vm::report).collect();
        reports.push(self.daemon.report());
        reports.join("\n")
    }
}

/// Copies the example, so that scenarios can edit it.
fn copy_example(into: &Path) -> Result<()> {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/shop");
    fs::create_dir(into).context("make the manifests folder")?;
    for entry in fs::read_dir(&example).with_context(|| format!("list {}", example.display()))? {
        let entry = entry?;
        fs::copy(entry.path(), into.join(entry.file_name())).context("copy the example")?;
    }
    Ok(())
}
