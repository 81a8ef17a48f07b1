// SPDX-License-Identifier: Apache-2.0
//! DPDK's `testpmd` as two guests that send as fast as they can.
//!
//! Each guest port (virtio-user) is paired with a capture file that is looped from memory; what the port receives is
//! counted and dropped. Its memory is a memfd, so no huge pages are needed.

use std::fs::File;
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use testkit::scratch::Scratch;

/// Time for its last words.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// A running generator; killed on drop.
pub struct Generator {
    child: Child,
    log: std::path::PathBuf,
}

impl Generator {
    /// Starts sending between the two sockets in `dir`, from `a.pcap` and `b.pcap` there, of `frames` each. `card` is more
    /// properties of both cards, such as `packed_vq=1`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(dir: &Scratch, frames: usize, card: &str) -> Result<Self> {
        // Both files stay in memory whole; the rings need some more. A buffer takes 2.4 KB.
        let buffers = (2 * frames + 16_384).max(65_536);
        let memory_mib = 256 + buffers * 3 / 1024;
        let log = dir.join("testpmd.log");
        let mut command = Command::new("dpdk-testpmd");
        command.args(["--lcores", "0@(0-1),1@0", "--no-huge", "--no-pci", "--no-telemetry", "-m"]);
        command.arg(memory_mib.to_string());
        command.arg(format!("--file-prefix=meshvisor-{}", std::process::id()));
        for (port, (socket, file)) in super::sockets(dir.path()).iter().zip(["a.pcap", "b.pcap"]).enumerate()
        {
            command.arg(format!(
                "--vdev=net_virtio_user{port},mac=02:00:00:00:00:0{},path={},queues=1,queue_size=256{}{card}",
                port + 1,
                socket.display(),
                if card.is_empty() { "" } else { "," },
            ));
            command.arg(format!("--vdev=net_pcap{port},rx_pcap={},infinite_rx=1", dir.join(file).display()));
        }
        command.args(["--", "--auto-start", "--nb-cores=1", "--no-lsc-interrupt"]);
        command.arg(format!("--total-num-mbufs={buffers}"));
        command.args(["--rxd=256", "--txd=256", "--forward-mode=io"]);
        let output = File::create(&log)?;
        command.stdin(Stdio::piped()).stdout(output.try_clone()?).stderr(output);
        let child = command.spawn().context("start dpdk-testpmd")?;
        Ok(Self { child, log })
    }

    /// Ends it; returns how many frames its two guest ports received.
    ///
    /// # Errors
    /// When it does not end by itself, or does not say.
    pub fn stop(mut self) -> Result<u64> {
        if let Some(mut stdin) = self.child.stdin.take() {
            stdin.write_all(b"\n").context("tell dpdk-testpmd to stop")?;
        }
        let deadline = Instant::now() + STOP_LIMIT;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                bail!("dpdk-testpmd does not end");
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
        let words = std::fs::read_to_string(&self.log)?;
        received(&words).with_context(|| format!("dpdk-testpmd did not say what it received:\n{words}"))
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Frames received by ports 0 and 2, the guests' (1 and 3 are the capture files'), from the closing statistics.
fn received(words: &str) -> Option<u64> {
    let of_port = |port: u8| {
        let section = words.split(&format!("Forward statistics for port {port} ")).nth(1)?;
        section.split("RX-packets:").nth(1)?.split_whitespace().next()?.parse::<u64>().ok()
    };
    Some(of_port(0)? + of_port(2)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_guest_ports_count() {
        let section = |port, count| {
            format!(
                "  ---------------------- Forward statistics for port {port}  ----------------------\n  \
                 RX-packets: {count}   RX-dropped: 0   RX-total: {count}\n  TX-packets: 9\n"
            )
        };
        let words: String = [(0, 5), (1, 100), (2, 7), (3, 200)].map(|(p, c)| section(p, c)).concat();
        assert_eq!(received(&words), Some(12));
        assert_eq!(received("nothing"), None);
    }
}
