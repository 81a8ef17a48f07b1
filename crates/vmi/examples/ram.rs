// SPDX-License-Identifier: Apache-2.0
//! Looks into a guest through a file of its RAM: `ram FILE [--below-4g BYTES] VIEW`.
//!
//! Views: `info`, `ps [--wide]`, `ss [--wide]`, `cpu`, `frame RING_GPA HEAD`, `connection tcp|udp LOCAL REMOTE`, `listener tcp|udp LOCAL`.
//!
//! The file is what QEMU's `memory-backend-file,share=on` keeps, of a running guest or a copy. A guest whose
//! RAM is split has the part beyond `--below-4g` bytes (2 GiB on q35, 3 GiB on pc) at 4 GiB.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "a program, not the library")]

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use model::Protocol;
use vmi::{Guest, Kernel, PhysicalMemory, Unmapped};

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

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (mut words, mut below_4g_bytes) = (Vec::new(), HIGH_RAM_GPA);
    while let Some(argument) = arguments.next() {
        if argument == "--below-4g" {
            let value = arguments.next().and_then(|value| value.parse().ok());
            let Some(value) = value else { return usage() };
            below_4g_bytes = value;
        } else {
            words.push(argument);
        }
    }
    let Some((file, view)) = words.split_first() else { return usage() };
    match look(file, below_4g_bytes, view) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ram: {file}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!(
        "usage: ram FILE [--below-4g BYTES] info|ps [--wide]|ss [--wide]|cpu|frame RING_GPA HEAD\
         |connection tcp|udp LOCAL REMOTE|listener tcp|udp LOCAL"
    );
    ExitCode::from(2)
}

fn look(file: &str, below_4g_bytes: u64, view: &[String]) -> Result<(), Box<dyn std::error::Error>> {
    let ram = Arc::new(RamFile::open(file, below_4g_bytes)?);
    let started = Instant::now();
    let mut guest = Guest::attach(ram)?;
    let attached = started.elapsed();
    let started = Instant::now();
    let words: Vec<&str> = view.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["info"] => {
            print_kernel(guest.kernel());
            println!("attached in:   {attached:.1?}");
        }
        ["ps"] => print_processes(&guest)?,
        ["ss"] => print_sockets(&guest)?,
        ["ps", "--wide"] => println!("{:#?}", guest.process_details()?),
        ["ss", "--wide"] => println!("{:#?}", guest.socket_details()?),
        ["cpu"] => println!("{:#?}", guest.cpu_sample()?),
        ["frame", ring, head] => println!("{:#?}", guest.frame_owner(ring.parse()?, head.parse()?)),
        ["connection", protocol, local, remote] => {
            println!("{:#?}", guest.connection_owner(local.parse()?, remote.parse()?, l4(protocol)?));
        }
        ["listener", protocol, local] => {
            println!("{:#?}", guest.listener_owner(local.parse()?, l4(protocol)?));
        }
        _ => return Err(format!("no view `{}`", words.join(" ")).into()),
    }
    eprintln!("answered in {:.1?}", started.elapsed());
    Ok(())
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
