// SPDX-License-Identifier: Apache-2.0
//! Looks into a guest through a file of its RAM:
//! `ram FILE [--below-4g BYTES] [--profile BTF] [--without symbols|types] VIEW`.
//!
//! `--without` hides what the kernel tells of itself, to see that it is understood nevertheless; a kernel without
//! types needs a profile, which `types` prints.
//!
//! Views: `info`, `types`, `ps [--wide]`, `ss [--wide]`, `cpu`, `frame RING_GPA HEAD`, `connection tcp|udp LOCAL REMOTE`, `listener tcp|udp LOCAL`.
//!
//! The file is what QEMU's `memory-backend-file,share=on` keeps, of a running guest or a copy. A guest whose
//! RAM is split has the part beyond `--below-4g` bytes (2 GiB on q35, 3 GiB on pc) at 4 GiB.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "a program, not the library")]

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use model::Protocol;
use vmi::{Guest, Heartbeats, Kernel, PhysicalMemory, Unmapped};

/// Granularity at which the file's empty parts are recognised.
const BLOCK_BYTES: usize = 64 << 10;
const HIGH_RAM_GPA: u64 = 4 << 30;

/// RAM in a file, read by position: holes stay holes.
struct RamFile {
    file: File,
    len_bytes: u64,
    below_4g_bytes: u64,
    extents: Vec<Range<u64>>,
}

impl RamFile {
    fn open(path: &str, below_4g_bytes: u64) -> std::io::Result<Self> {
        let file = File::open(path)?;
        let len_bytes = file.metadata()?.len();
        let mut ram = Self { file, len_bytes, below_4g_bytes, extents: Vec::new() };
        let mut block = vec![0; BLOCK_BYTES];
        let mut at = 0;
        while at < len_bytes {
            let len = ram.file.read_at(&mut block, at)?;
            if block[..len].iter().any(|&byte| byte != 0) {
                let start = ram.gpa(at);
                match ram.extents.last_mut() {
                    Some(last) if last.end == start => last.end += len as u64,
                    _ => ram.extents.push(start..start + len as u64),
                }
            }
            at += len.max(1) as u64;
        }
        Ok(ram)
    }

    fn gpa(&self, offset: u64) -> u64 {
        offset.checked_sub(self.below_4g_bytes).map_or(offset, |above| HIGH_RAM_GPA + above)
    }

    /// Offset in the file of `len_bytes` bytes of RAM.
    fn offset(&self, gpa: u64, len_bytes: u64) -> Option<u64> {
        let (offset, end) = match gpa.checked_sub(HIGH_RAM_GPA) {
            Some(above) => (self.below_4g_bytes.checked_add(above)?, self.len_bytes),
            None => (gpa, self.below_4g_bytes.min(self.len_bytes)),
        };
        (offset.checked_add(len_bytes)? <= end).then_some(offset)
    }
}

impl PhysicalMemory for RamFile {
    fn read(&self, gpa: u64, out: &mut [u8]) -> Result<(), Unmapped> {
        let offset = self.offset(gpa, out.len() as u64).ok_or(Unmapped)?;
        self.file.read_exact_at(out, offset).map_err(|_| Unmapped)
    }

    fn extents(&self) -> Vec<Range<u64>> {
        self.extents.clone()
    }
}

/// What lies where BTF and the tokens of symbols begin.
const TYPES: &[u8] = &[0x9f, 0xeb, 1, 0, 24, 0, 0, 0];
const SYMBOLS: &[u8] = b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00";

/// RAM in which a pattern never occurs.
struct Veiled {
    ram: RamFile,
    hidden: Option<&'static [u8]>,
}

impl PhysicalMemory for Veiled {
    fn read(&self, gpa: u64, out: &mut [u8]) -> Result<(), Unmapped> {
        self.ram.read(gpa, out)?;
        if let Some(pattern) = self.hidden {
            let places: Vec<usize> = memchr::memmem::find_iter(out, pattern).collect();
            places.into_iter().for_each(|at| out[at..at + pattern.len()].fill(0));
        }
        Ok(())
    }

    fn extents(&self) -> Vec<Range<u64>> {
        self.ram.extents()
    }
}

/// What the command line asks for.
#[derive(Default)]
struct Arguments {
    below_4g_bytes: Option<u64>,
    profile: Option<String>,
    hidden: Option<&'static [u8]>,
    /// File and view.
    words: Vec<String>,
}

impl Arguments {
    fn parse(mut given: impl Iterator<Item = String>) -> Option<Self> {
        let mut parsed = Self::default();
        while let Some(argument) = given.next() {
            match argument.as_str() {
                "--below-4g" => parsed.below_4g_bytes = Some(given.next()?.parse().ok()?),
                "--profile" => parsed.profile = Some(given.next()?),
                "--without" => match given.next()?.as_str() {
                    "symbols" => parsed.hidden = Some(SYMBOLS),
                    "types" => parsed.hidden = Some(TYPES),
                    _ => return None,
                },
                _ => parsed.words.push(argument),
            }
        }
        (parsed.words.len() > 1).then_some(parsed)
    }
}

fn main() -> ExitCode {
    let Some(arguments) = Arguments::parse(std::env::args().skip(1)) else { return usage() };
    match look(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ram: {}: {error}", arguments.words[0]);
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!(
        "usage: ram FILE [--below-4g BYTES] [--profile BTF] [--without symbols|types] info|types|ps [--wide]|ss [--wide]|cpu|frame RING_GPA HEAD\
         |connection tcp|udp LOCAL REMOTE|listener tcp|udp LOCAL"
    );
    ExitCode::from(2)
}

fn look(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let (file, view) = (&arguments.words[0], &arguments.words[1..]);
    let ram = RamFile::open(file, arguments.below_4g_bytes.unwrap_or(HIGH_RAM_GPA))?;
    let ram = Arc::new(Veiled { ram, hidden: arguments.hidden });
    let profile = arguments.profile.as_ref().map(std::fs::read).transpose()?;
    let started = Instant::now();
    let shared: Arc<dyn PhysicalMemory> = ram.clone();
    let mut guest = Guest::attach_with(shared, &mut Heartbeats::default(), &|_| profile.clone())?;
    let attached = started.elapsed();
    let started = Instant::now();
    let words: Vec<&str> = view.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["info"] => {
            print_kernel(guest.kernel());
            println!("attached in:   {attached:.1?}");
        }
        ["types"] => std::io::stdout().write_all(&types(&ram, guest.kernel().types_bytes)?)?,
        ["ps"] => print_processes(&guest)?,
        ["ss"] => print_sockets(&guest)?,
        ["ps", "--wide"] => println!("{:#?}", guest.process_details()?),
        ["ss", "--wide"] => println!("{:#?}", guest.socket_details()?),
        ["cpu"] => println!("{:#?}", guest.cpu_sample()?),
        ["frame", ring, head] => println!("{:#?}", guest.frame_owner(ring.parse()?, head.parse()?)),
        ["connection", protocol, local, remote] => {
            println!("{:#?}", guest.connection_owner(local.parse()?, remote.parse()?, l4(protocol)?));
        }
        ["listener", protocol, local, remote] => {
            println!("{:#?}", guest.listener_owner(local.parse()?, Some(remote.parse()?), l4(protocol)?));
        }
        _ => return Err(format!("no view `{}`", words.join(" ")).into()),
    }
    eprintln!("answered in {:.1?}", started.elapsed());
    Ok(())
}

/// The types of that length, as they lie in RAM.
fn types(ram: &Veiled, len_bytes: usize) -> Result<Vec<u8>, String> {
    let mut block = vec![0; BLOCK_BYTES + TYPES.len()];
    let places = ram.extents().into_iter().flat_map(|extent| extent.step_by(BLOCK_BYTES));
    for place in places {
        if ram.read(place, &mut block).is_err() {
            continue;
        }
        for at in memchr::memmem::find_iter(&block, TYPES) {
            let mut types = vec![0; len_bytes];
            let word = |types: &[u8], at: usize| {
                u32::from_le_bytes([types[at], types[at + 1], types[at + 2], types[at + 3]])
            };
            if ram.read(place + at as u64, &mut types).is_ok()
                && (24 + word(&types, 12) + word(&types, 20)) as usize == len_bytes
                && types.last() == Some(&0)
                // The kernel keeps copies of the header with nothing behind them.
                && matches!(types.get(24 + word(&types, 12) as usize..), Some([0, 1..=255, ..]))
            {
                return Ok(types);
            }
        }
    }
    Err("the kernel's types are not in RAM".into())
}

fn l4(name: &str) -> Result<Protocol, String> {
    match name {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        _ => Err(format!("no protocol `{name}`")),
    }
}

fn print_kernel(kernel: &Kernel) {
    println!("banner:        {}", kernel.banner);
    println!("release:       {}", kernel.release);
    println!("paging levels: {}", kernel.paging_levels);
    println!("image offset:  {:#x}", kernel.image_offset);
    println!("types:         {} in {} bytes", kernel.types, kernel.types_bytes);
    println!("symbols:       {}", kernel.symbols);
}

fn print_sockets(guest: &Guest) -> Result<(), vmi::ViewError> {
    println!(
        "{:5} {:10} {:>26} {:>26} {:>6} {:>8} {:>10} OWNERS",
        "PROTO", "STATE", "LOCAL", "REMOTE", "UID", "INODE", "NETNS"
    );
    for socket in guest.sockets()? {
        let number = |value: Option<u64>| value.map_or("-".to_owned(), |value| value.to_string());
        let owners: Vec<String> =
            socket.owners.iter().map(|owner| format!("{}/{}", owner.pid, owner.fd)).collect();
        println!(
            "{:5} {:10} {:>26} {:>26} {:>6} {:>8} {:>10} {}",
            socket.protocol,
            socket.state,
            socket.local.to_string(),
            socket.remote.to_string(),
            number(socket.uid.map(u64::from)),
            number(socket.inode),
            socket.netns_inode,
            owners.join(","),
        );
    }
    Ok(())
}

fn print_processes(guest: &Guest) -> Result<(), vmi::ViewError> {
    println!("{:>7} {:>7} {:>6} {:>12} {:16} {:32} CGROUP", "PID", "PARENT", "UID", "START_S", "NAME", "EXE");
    for process in guest.processes()? {
        println!(
            "{:>7} {:>7} {:>6} {:>12.2} {:16} {:32} {}",
            process.pid,
            process.parent_pid,
            process.uid.map_or("?".to_owned(), |uid| uid.to_string()),
            process.start_time_ns as f64 / 1e9,
            process.name,
            process.exe.as_deref().unwrap_or("-"),
            process.cgroup.as_deref().unwrap_or("?"),
        );
    }
    Ok(())
}
