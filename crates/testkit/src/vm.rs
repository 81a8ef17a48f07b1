// SPDX-License-Identifier: Apache-2.0
//! Real virtual machines under stock QEMU.
//!
//! A guest has two serial lines: the first is the kernel's console, kept in a file for failure reports; the
//! second carries a root shell that [`Vm::run`] drives. Its network card, if it has one, is a vhost-user
//! frontend, and its RAM is a memfd that the backend is handed.
//!
//! QEMU options that were found by trying: under TCG, `vectors=0` on the card keeps QEMU 7.2 from crashing when
//! the driver starts.

use std::fmt;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use model::MacAddr;
use serde_json::json;

use crate::guests::GuestKernel;
use crate::monitor::{self, Monitor};
use crate::process::{Process, tail};
use crate::serial::{Output, SerialError, Shell};
use crate::vmm::Vmm;

/// A guest that has not reached its shell by then never will, even on a busy machine.
pub const BOOT_LIMIT: Duration = Duration::from_secs(90);
/// Time for a command that does nothing slow.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(30);
/// What every guest's kernel is told. It does not check the timer at boot: the check counts ticks while it spins, and
/// on a busy machine an emulated guest gets too few of them and panics.
const BOOT_OPTIONS: &str = "console=ttyS0 quiet panic=-1 no_timer_check";
/// A card whose backend alone knows what it is.
pub const GENERIC_CARD: &str = "vhost-user-test-device-pci";
/// Makes it a network card (virtio 1.2, section 5) at the socket `net`, with one pair of rings.
const GENERIC_NETWORK: &str = "chardev=net,virtio-id=1,num_vqs=2,vq_size=256";
/// Words of the one known crash of emulated guests, which a second boot does not repeat.
const KNOWN_CRASH: &str = "Oops: int3";

/// How a guest's instructions are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// By the processor.
    Kvm,
    /// By QEMU's translator.
    Tcg,
}

impl Accel {
    /// QEMU's word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// The processor that a guest sees; it decides how deep the guest's page tables are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cpu {
    /// Four levels.
    Qemu64,
    /// Everything that the accelerator can give: five levels under TCG.
    Max,
}

/// The board that a guest sees; it decides where RAM is split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Board {
    /// RAM beyond 2 GiB lies at 4 GiB.
    Q35,
    /// RAM beyond 3 GiB lies at 4 GiB.
    Pc,
}

/// Which end of the vhost-user socket the VMM takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketRole {
    /// The backend listens; QEMU connects, and connects again when the backend comes back.
    Connects,
    /// QEMU listens; the backend connects.
    Listens,
}

/// What a network card is to its VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NicModel {
    /// A network card, whose features it knows and decides about with the backend.
    VirtioNet,
    /// Whatever the backend makes of it: all of the backend's features are the guest's to accept. Only [`Vmm::Newer`]
    /// has it. It has one pair of rings and no configuration space, so the guest itself gives it its address.
    Generic,
}

/// A guest's network card.
#[derive(Clone, Debug)]
pub struct NicSpec {
    /// What it is to the VMM.
    pub model: NicModel,
    /// Hardware address.
    pub mac: MacAddr,
    /// The vhost-user socket.
    pub socket: PathBuf,
    /// Who listens on it.
    pub role: SocketRole,
    /// Queue pairs that the card has.
    pub queue_pairs: u8,
    /// More properties of the card, as QEMU names them, such as `packed=on`.
    pub properties: &'static str,
}

/// What to boot.
#[derive(Clone, Debug)]
pub struct VmSpec {
    /// The guest's host name, and the stem of its files' names.
    pub name: String,
    /// Which kernel.
    pub kernel: GuestKernel,
    /// Which processor.
    pub cpu: Cpu,
    /// How many processors. More than one run on one thread under TCG, because two threads have been seen to end in
    /// `Oops: int3` while code is patched.
    pub processors: u8,
    /// Which board.
    pub board: Board,
    /// Its initial root file system, where that is not its kernel's usual one.
    pub initramfs: Option<PathBuf>,
    /// RAM in MiB; beyond what the board has below 4 GiB it lies in two regions.
    pub memory_mib: u32,
    /// What its kernel is told beside what every guest's is.
    pub boot_options: String,
    /// How the guest's code is run.
    pub accel: Accel,
    /// What runs it.
    pub vmm: Vmm,
    /// The card, if any.
    pub nic: Option<NicSpec>,
    /// The file that is its RAM; otherwise it has no name (see [`Vm::ram`]).
    pub ram: Option<PathBuf>,
    /// Whether the machine starts again when its guest reboots; otherwise it ends, which shows a crash at once.
    pub reboots: bool,
}

impl Board {
    /// RAM that lies below 4 GiB, if there is as much.
    #[must_use]
    pub fn below_4g_bytes(self) -> u64 {
        match self {
            Self::Q35 => 2 << 30,
            Self::Pc => 3 << 30,
        }
    }
}

impl VmSpec {
    /// A small guest without a card: kernel 6.1, four-level paging, 256 MiB.
    #[must_use]
    pub fn new(name: &str, accel: Accel) -> Self {
        Self {
            name: name.into(),
            kernel: GuestKernel::V6_1,
            cpu: Cpu::Qemu64,
            processors: 1,
            board: Board::Q35,
            initramfs: None,
            memory_mib: 256,
            boot_options: String::new(),
            accel,
            vmm: Vmm::Installed,
            nic: None,
            ram: None,
            reboots: false,
        }
    }
}

/// A running virtual machine; killed on drop.
#[derive(Debug)]
pub struct Vm {
    pub(crate) spec: VmSpec,
    pub(crate) folder: PathBuf,
    /// Stem of the files of the VMM that it is in.
    pub(crate) stem: String,
    pub(crate) process: Process,
    pub(crate) shell: Mutex<Shell>,
    /// Times that it was moved to another VMM.
    pub(crate) moves: u32,
}

impl Vm {
    /// Starts a machine, with its files in `folder`, and does not wait for it.
    ///
    /// The machine ends with the thread that calls this.
    ///
    /// # Errors
    /// When QEMU or the guest images (`cargo xtask guests`) are missing.
    pub fn start(spec: VmSpec, folder: &Path) -> Result<Self> {
        let (process, shell) = launch(&spec, folder, &spec.name, None)?;
        let (folder, stem) = (folder.to_owned(), spec.name.clone());
        Ok(Self { spec, folder, stem, process, shell: Mutex::new(shell), moves: 0 })
    }

    /// Starts a machine and waits for its shell.
    ///
    /// # Errors
    /// As [`Vm::start`] and [`Vm::ready`].
    pub fn boot(spec: VmSpec, folder: &Path) -> Result<Self> {
        let mut vm = Self::start(spec, folder)?;
        vm.ready(BOOT_LIMIT)?;
        Ok(vm)
    }

    /// Waits until the guest's shell listens. A guest that met the known crash is started once more.
    ///
    /// # Errors
    /// When it does not get there; the error holds the end of the console.
    pub fn ready(&mut self, limit: Duration) -> Result<()> {
        let started = Instant::now();
        let Err(first) = self.shell_mut().ready(limit) else { return Ok(()) };
        let crashed = fs::read_to_string(self.console()).is_ok_and(|console| console.contains(KNOWN_CRASH));
        if !crashed {
            bail!("{} did not boot: {first}\n{}", self.spec.name, self.report());
        }
        // The old machine goes first: both would use the same socket.
        let _ = self.process.kill();
        let (process, shell) = launch(&self.spec, &self.folder, &self.stem, None)?;
        (self.process, self.shell) = (process, Mutex::new(shell));
        let left = limit.saturating_sub(started.elapsed());
        let again = self.shell_mut().ready(left);
        again.with_context(|| format!("{} did not boot the second time\n{}", self.spec.name, self.report()))
    }

    /// Resets the guest at once, as its reset button would, and waits for its shell to come back.
    ///
    /// # Errors
    /// As [`Vm::ready`]; also when the machine was not started to survive a reboot.
    pub fn reset(&mut self) -> Result<()> {
        if !self.spec.reboots {
            bail!("{} was started to end with its first reboot", self.spec.name);
        }
        self.shell_mut().say("echo b >/proc/sysrq-trigger")?;
        self.ready(BOOT_LIMIT)
    }

    /// Runs a shell command in the guest as root and waits for its end, [`COMMAND_LIMIT`] at most.
    ///
    /// # Errors
    /// When the guest does not answer. A command that fails is no error: see [`Output::status`].
    pub fn run(&self, command: &str) -> Result<Output> {
        self.run_within(command, COMMAND_LIMIT)
    }

    /// As [`Vm::run`] with another limit. One command runs at a time; a second caller waits for the first.
    ///
    /// # Errors
    /// When the guest does not answer in time.
    pub fn run_within(&self, command: &str, limit: Duration) -> Result<Output> {
        let mut shell = self.shell.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = shell.run(command, limit);
        drop(shell);
        outcome
            .map_err(|error| match error {
                SerialError::Closed => anyhow::anyhow!("{} died: {}", self.spec.name, self.report()),
                other => other.into(),
            })
            .with_context(|| format!("run `{command}` in {}", self.spec.name))
    }

    /// Runs a command that must succeed; returns what it printed.
    ///
    /// # Errors
    /// When it does not succeed, with what it printed.
    pub fn expect(&self, command: &str) -> Result<String> {
        let output = self.run(command)?;
        if !output.success() {
            bail!("`{command}` in {} ended with {}: {}", self.spec.name, output.status, output.stdout);
        }
        Ok(output.stdout)
    }

    /// Starts a command in the background with its output in the guest's file `/tmp/<name>.log`; returns its
    /// process id in the guest.
    ///
    /// # Errors
    /// When the guest does not answer.
    pub fn background(&self, name: &str, command: &str) -> Result<u32> {
        let pid =
            self.expect(&format!("rm -f /tmp/{name}.log; {command} >/tmp/{name}.log 2>&1 & echo $!"))?;
        pid.parse().with_context(|| format!("the guest said {pid:?} instead of a process id"))
    }

    /// Waits until a background command has ended, and returns what it printed. The answer comes within some
    /// 10 ms of the end.
    ///
    /// # Errors
    /// When it goes on for longer than `limit`.
    pub fn await_end(&self, name: &str, pid: u32, limit: Duration) -> Result<String> {
        let wait = format!("while kill -0 {pid} 2>/dev/null; do usleep 2000; done; cat /tmp/{name}.log");
        Ok(self.run_within(&wait, limit)?.stdout)
    }

    /// Waits until a line of a background command's output starts with `word`, and returns that line.
    ///
    /// # Errors
    /// When there is none within `limit`; the error holds the output.
    pub fn await_line(&self, name: &str, word: &str, limit: Duration) -> Result<String> {
        let log = format!("/tmp/{name}.log");
        let seconds = limit.as_secs().max(1);
        // The guest's own shell waits, so that the serial line is not flooded with questions.
        let wait = format!("until grep -m1 '^{word}' {log}; do usleep 20000; done");
        let output =
            self.run_within(&format!("timeout {seconds} sh -c \"{wait}\""), limit + COMMAND_LIMIT)?;
        if !output.success() {
            let written = self.run(&format!("cat {log}"))?.stdout;
            bail!("{name} in {} did not print a line with `{word}` in {limit:?}: {written}", self.spec.name);
        }
        Ok(output.stdout.lines().next().unwrap_or_default().to_owned())
    }

    /// Waits for an address from DHCP and returns it.
    ///
    /// # Errors
    /// When none came within `limit`.
    pub fn lease(&self, limit: Duration) -> Result<String> {
        let seconds = limit.as_secs().max(1);
        let output = self.run_within(&format!("timeout {seconds} await-lease"), limit + COMMAND_LIMIT)?;
        if !output.success() {
            let seen = self.run("cat /run/udhcpc.log; ip address; ip route")?.stdout;
            bail!("{} got no address in {limit:?}: {seen}", self.spec.name);
        }
        Ok(output.stdout)
    }

    /// The guest's RAM, opened for reading: byte 0 is guest-physical 0, and what lies above 4 GiB follows the
    /// lower region directly.
    ///
    /// Reading a hole through a mapping allocates it in the host; look for data first (`SEEK_DATA`).
    ///
    /// # Errors
    /// When QEMU is gone.
    pub fn ram(&self) -> Result<File> {
        let path = self.ram_path()?;
        File::open(&path).with_context(|| format!("open {}", path.display()))
    }

    /// The path of its RAM's file, as another process opens it.
    ///
    /// # Errors
    /// When QEMU is gone.
    pub fn ram_path(&self) -> Result<PathBuf> {
        if let Some(path) = &self.spec.ram {
            return Ok(path.clone());
        }
        ram_of(self.pid()).with_context(|| format!("{} has no RAM file", self.spec.name))
    }

    /// Does `what` while the machine stands still: nothing changes in its RAM meanwhile.
    ///
    /// # Errors
    /// When it cannot be stopped or does not go on, or `what` fails.
    pub fn while_frozen<T>(&self, what: impl FnOnce() -> Result<T>) -> Result<T> {
        self.process.freeze(true).context("stop QEMU")?;
        let done = what();
        self.process.freeze(false).context("let QEMU go on")?;
        done
    }

    /// Has the VMM write the machine's RAM to a file, an ELF core, while the guest waits.
    ///
    /// # Errors
    /// When the VMM refuses or takes too long.
    pub fn dump(&self, to: &Path) -> Result<()> {
        let wish = json!({"paging": false, "protocol": format!("file:{}", to.display())});
        let mut monitor = Monitor::connect(&self.folder, &self.stem)?;
        monitor.call("dump-guest-memory", &wish).map(drop).with_context(|| self.report())
    }

    /// The machine's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// QEMU's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Ends the machine at once, as a power cut would.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill().context("kill QEMU").map(drop)
    }

    /// The file with everything the kernel printed.
    #[must_use]
    pub fn console(&self) -> PathBuf {
        self.folder.join(format!("{}.console", self.stem))
    }

    /// For a failure report: the ends of the console and of QEMU's own messages.
    #[must_use]
    pub fn report(&self) -> String {
        let name = &self.spec.name;
        format!(
            "--- {name}: console\n{}\n--- {name}: QEMU\n{}",
            tail(&self.console()),
            self.process.log_tail()
        )
    }

    fn shell_mut(&mut self) -> &mut Shell {
        self.shell.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for Vm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.spec.name)
    }
}

/// The path of the RAM without a name of a VMM's guest.
pub(crate) fn ram_of(pid: u32) -> Result<PathBuf> {
    let descriptors = format!("/proc/{pid}/fd");
    for entry in fs::read_dir(&descriptors).with_context(|| format!("list {descriptors}"))? {
        let path = entry?.path();
        let target = fs::read_link(&path).unwrap_or_default();
        if target.to_string_lossy().starts_with("/memfd:memory-backend-memfd") {
            return Ok(path);
        }
    }
    bail!("process {pid} has no RAM file")
}

/// Starts QEMU, its files named after `stem`; its standard input and output are the far end of the shell's line. With
/// `incoming`, the guest comes from there, and then waits to be let go on.
pub(crate) fn launch(
    spec: &VmSpec,
    folder: &Path,
    stem: &str,
    incoming: Option<&str>,
) -> Result<(Process, Shell)> {
    let kernel = spec.kernel.image();
    let initramfs = spec.initramfs.clone().unwrap_or_else(|| spec.kernel.initramfs());
    for image in [&kernel, &initramfs] {
        if !image.is_file() {
            bail!("{} is missing: run `cargo xtask guests`", image.display());
        }
    }
    let (near, far) = UnixStream::pair().context("make the serial line")?;
    let far = OwnedFd::from(far);
    let far_again = far.try_clone().context("share the serial line")?;
    let log = folder.join(format!("{stem}.qemu"));
    let console = folder.join(format!("{stem}.console"));
    let monitor = folder.join(format!("{stem}.{}", monitor::SUFFIX));
    let (program, first) = spec.vmm.program();
    let process = Process::start(&program, log, |command| {
        command.args(first).args(machine(spec)).args(["-serial", &format!("file:{}", console.display())]);
        command.args(["-chardev", "stdio,id=shell,signal=off", "-serial", "chardev:shell"]);
        command.arg("-kernel").arg(&kernel).arg("-initrd").arg(&initramfs);
        command.args(["-append", &boot_options(spec)]);
        command.args(["-qmp", &format!("unix:{},server=on,wait=off", monitor.display())]);
        if let Some(incoming) = incoming {
            command.args(["-S", "-incoming", incoming]);
        }
        command.stdin(far).stdout(far_again);
    })?;
    Ok((process, Shell::new(near)))
}

/// What the guest's kernel is told, and hands over to its first process.
fn boot_options(spec: &VmSpec) -> String {
    let all = format!("{BOOT_OPTIONS} {} vm_name={}", spec.boot_options, spec.name);
    match &spec.nic {
        Some(NicSpec { model: NicModel::Generic, mac, .. }) => format!("{all} vm_mac={mac}"),
        _ => all,
    }
}

/// Options for the board, processor, memory and card.
fn machine(spec: &VmSpec) -> Vec<String> {
    let memory = spec.memory_mib;
    let mut options: Vec<String> =
        ["-nodefaults", "-no-user-config", "-display", "none"].map(str::to_owned).into();
    let board = match spec.board {
        Board::Q35 => "q35",
        Board::Pc => "pc",
    };
    options.extend(["-machine".into(), format!("{board},memory-backend=ram"), "-object".into()]);
    if !spec.reboots {
        options.insert(0, "-no-reboot".into());
    }
    let backend = match &spec.ram {
        Some(path) => format!("memory-backend-file,mem-path={},", path.display()),
        None => "memory-backend-memfd,".into(),
    };
    options.push(format!("{backend}id=ram,size={memory}M,share=on"));
    let threads = if spec.processors > 1 && spec.accel == Accel::Tcg { ",thread=single" } else { "" };
    options.extend(["-m".into(), format!("{memory}M"), "-accel".into()]);
    options.extend([format!("{}{threads}", spec.accel.as_str()), "-smp".into(), spec.processors.to_string()]);
    let cpu = match spec.cpu {
        Cpu::Qemu64 => "qemu64",
        Cpu::Max => "max",
    };
    options.extend(["-cpu".into(), cpu.into()]);
    if let Some(nic) = &spec.nic {
        options.extend(card(spec, nic));
    }
    options
}

/// Options for a network card.
fn card(spec: &VmSpec, nic: &NicSpec) -> Vec<String> {
    let role = match (nic.role, nic.model) {
        (SocketRole::Listens, _) => ",server=on".to_owned(),
        (SocketRole::Connects, NicModel::VirtioNet) => format!(",{}", spec.vmm.reconnects()),
        // Its backend has to be there when it is made.
        (SocketRole::Connects, NicModel::Generic) => String::new(),
    };
    let socket = format!("socket,id=net,path={}{role}", nic.socket.display());
    let device = match nic.model {
        NicModel::VirtioNet => virtio_net(spec, nic),
        NicModel::Generic => ["-device".into(), format!("{GENERIC_CARD},{GENERIC_NETWORK}")].into(),
    };
    [vec!["-chardev".into(), socket], device].concat()
}

/// QEMU's own network card at the socket `net`.
fn virtio_net(spec: &VmSpec, nic: &NicSpec) -> Vec<String> {
    let vectors = match spec.accel {
        Accel::Tcg => ",vectors=0",
        Accel::Kvm => "",
    };
    let comma = if nic.properties.is_empty() { "" } else { "," };
    let several = if nic.queue_pairs > 1 { ",mq=on" } else { "" };
    let (mac, properties) = (nic.mac, nic.properties);
    [
        "-netdev".into(),
        format!("vhost-user,id=net,chardev=net,queues={}", nic.queue_pairs),
        "-device".into(),
        format!("virtio-net-pci,netdev=net,mac={mac},romfile={vectors}{several}{comma}{properties}"),
    ]
    .into()
}
