// SPDX-License-Identifier: Apache-2.0
//! More sockets of `shop`, and what may happen to a process that has one.

use super::*;

/// The descriptor that `shop` has left.
const FREE_DESCRIPTOR: u32 = 7;

impl Kernel {
    /// Gives `shop` another TCP connection.
    pub(crate) fn add_connection(&mut self, local: &str, remote: &str) -> Gva {
        let sock = self.sock(local, remote, 1, self.at.shop_kernfs);
        self.connect(sock);
        self.hold(sock)
    }

    /// Gives `shop` another UDP socket.
    pub(crate) fn add_datagram_socket(&mut self, local: &str, remote: &str) -> Gva {
        let sock = self.sock(local, remote, 1, self.at.shop_kernfs);
        let port = local.parse::<std::net::SocketAddr>().unwrap().port();
        self.bind(sock, port, MIX);
        self.hold(sock)
    }

    fn hold(&mut self, sock: Gva) -> Gva {
        let cred = Gva(self.read(self.at.shop.at(self.layout.task.cred)));
        let file = self.open(sock, cred, 700);
        let array = Gva(self.read(self.at.shop_fdt.at(self.layout.fdtable.fd)));
        self.put(array, FREE_DESCRIPTOR * 8, file.0);
        sock
    }

    /// Lets `shop` become another user and run another program; what it holds open it keeps.
    pub(crate) fn become_another(&mut self, uid: u64, name: &[u8]) {
        let layout = self.layout.clone();
        let cred = self.alloc(64);
        self.put(cred, layout.cred.euid, uid);
        for own in [layout.task.cred, layout.task.real_cred] {
            self.put(self.at.shop, own, cred.0);
        }
        let mounts = self.mounts();
        let exe = self.file_at(mounts.0, mounts.1, &["bin", "other"]);
        let mm = self.alloc(128);
        self.put(mm, layout.mm.exe_file, exe.0);
        self.put(self.at.shop, layout.task.mm, mm.0);
        self.write(self.at.shop.at(layout.task.comm), name);
    }
}
