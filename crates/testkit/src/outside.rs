// SPDX-License-Identifier: Apache-2.0
//! The world outside the mesh: a network namespace with a TAP interface, whose own stack is the other side.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::names;

/// The interface's name.
pub const INTERFACE: &str = "mesh-out";
/// After this, a peer that says nothing counts as silent.
const PATIENCE: Duration = Duration::from_secs(5);

/// A namespace of its own. It goes away with it, and with it what was in it.
#[derive(Debug)]
pub struct Outside {
    name: String,
}

impl Outside {
    /// Makes a namespace with a TAP interface that has these addresses (with their prefixes), and a stack that
    /// has those, too.
    ///
    /// # Errors
    /// When this process may not, or `ip` is missing: the reason for a skip.
    pub fn new(at_interface: &[&str], elsewhere: &[&str]) -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            bail!("making a network namespace takes root");
        }
        let outside = Self { name: format!("mesh-{}", std::process::id()) };
        run(&["netns", "add", &outside.name])?;
        outside.ip(&["link", "set", "lo", "up"])?;
        outside.ip(&["tuntap", "add", "dev", INTERFACE, "mode", "tap", "vnet_hdr"])?;
        for (device, addresses) in [(INTERFACE, at_interface), ("lo", elsewhere)] {
            for address in addresses {
                outside.ip(&["address", "add", address, "dev", device])?;
            }
        }
        outside.ip(&["link", "set", INTERFACE, "up"])?;
        Ok(outside)
    }

    /// A program that runs another one in the namespace; it lies in `dir`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn wrapped(&self, program: &Path, dir: &Path) -> Result<PathBuf> {
        let path = dir.join("outside.sh");
        let script = format!("#!/bin/sh\nexec ip netns exec {} {} \"$@\"\n", self.name, program.display());
        std::fs::write(&path, script).with_context(|| format!("write {path:?}"))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        Ok(path)
    }

    /// Serves connections to `address` until the process ends: answers each line with the peer's address.
    ///
    /// # Errors
    /// When it cannot listen there.
    pub fn serve(&self, address: SocketAddr) -> Result<()> {
        let listener = self.within(|| TcpListener::bind(address))?.context("listen outside")?;
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let answered = stream.peer_addr().and_then(|peer| {
                    BufReader::new(&stream).read_line(&mut String::new())?;
                    writeln!(&stream, "{peer}")
                });
                // The peer sees for itself if it got no answer.
                drop(answered);
            }
        });
        Ok(())
    }

    /// Finds `found` for every name that is asked for at `address`, until the process ends.
    ///
    /// # Errors
    /// When it cannot listen there.
    pub fn serve_names(&self, address: SocketAddr, found: Ipv4Addr) -> Result<()> {
        let socket = self.within(|| UdpSocket::bind(address))?.context("listen outside")?;
        names::serve(socket, found);
        Ok(())
    }

    /// Connects from the namespace, sends a line and returns what comes back.
    ///
    /// # Errors
    /// When there is no connection or no answer.
    pub fn ask(&self, address: SocketAddr, line: &str) -> Result<String> {
        let stream = self.within(|| TcpStream::connect_timeout(&address, PATIENCE))?;
        let stream = stream.with_context(|| format!("connect to {address}"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        writeln!(&stream, "{line}")?;
        let mut answer = String::new();
        BufReader::new(&stream).read_line(&mut answer)?;
        Ok(answer.trim_end().to_owned())
    }

    /// Does something on a thread that is in the namespace; sockets made there stay in it.
    fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let namespace = File::open(Path::new("/run/netns").join(&self.name)).context("open the namespace")?;
        let enter = || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .context("enter the namespace")?;
            Ok(work())
        };
        std::thread::scope(|scope| scope.spawn(enter).join().expect("the work does not panic"))
    }

    fn ip(&self, words: &[&str]) -> Result<()> {
        run(&[&["-n", &self.name], words].concat())
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // Nothing more can be done about one that stays.
        drop(run(&["netns", "delete", &self.name]));
    }
}

/// Runs `ip`.
fn run(words: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(words).output().context("run `ip`")?;
    if !output.status.success() {
        bail!("ip {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
