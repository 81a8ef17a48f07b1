// SPDX-License-Identifier: Apache-2.0
//! Looks into a guest through a file of its RAM: `ram FILE [--below-4g BYTES] info|ps`.
//!
//! The file is what QEMU's `memory-backend-file,share=on` keeps, of a running guest or a copy. A guest whose
//! RAM is split has the part beyond `--below-4g` bytes (2 GiB on q35, 3 GiB on pc) at 4 GiB.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use vmi::{Guest, PhysicalMemory, Unmapped};

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
    let [file, view] = words.as_slice() else { return usage() };
    match look(file, below_4g_bytes, view) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ram: {file}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: ram FILE [--below-4g BYTES] info|ps");
    ExitCode::from(2)
}

fn look(file: &str, below_4g_bytes: u64, view: &str) -> Result<(), Box<dyn std::error::Error>> {
    let ram = Arc::new(RamFile::open(file, below_4g_bytes)?);
    let started = Instant::now();
    let guest = Guest::attach(ram)?;
    let attached = started.elapsed();
    match view {
        "info" => {
            let kernel = guest.kernel();
            println!("banner:        {}", kernel.banner);
            println!("release:       {}", kernel.release);
            println!("paging levels: {}", kernel.paging_levels);
            println!("image offset:  {:#x}", kernel.image_offset);
            println!("types:         {} in {} bytes", kernel.types, kernel.types_bytes);
            println!("symbols:       {}", kernel.symbols);
            println!("attached in:   {attached:.1?}");
        }
        "ps" => print_processes(&guest)?,
        _ => return Err(format!("no view `{view}`").into()),
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
