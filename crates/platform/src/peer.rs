// SPDX-License-Identifier: Apache-2.0
//! Who is at the other end of a Unix socket.

use std::io;
use std::os::unix::net::UnixStream;

use rustix::net::sockopt::socket_peercred;

/// The peer as the kernel knew it when the connection was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerCredentials {
    /// Process id; may since have been given to another process.
    pub pid: i32,
    /// Effective user id.
    pub uid: u32,
    /// Effective group id; supplementary groups are not told.
    pub gid: u32,
}

/// Asks the kernel who connected (`SO_PEERCRED`).
///
/// # Errors
/// When the kernel refuses, which it does not for a connected stream.
pub fn peer_credentials(stream: &UnixStream) -> io::Result<PeerCredentials> {
    let credentials = socket_peercred(stream)?;
    Ok(PeerCredentials {
        pid: credentials.pid.as_raw_nonzero().get(),
        uid: credentials.uid.as_raw(),
        gid: credentials.gid.as_raw(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_sees_itself_behind_its_own_pair() {
        let (one, _other) = UnixStream::pair().unwrap();
        let peer = peer_credentials(&one).unwrap();
        assert_eq!(u32::try_from(peer.pid).unwrap(), std::process::id());
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        assert_eq!(peer.gid, rustix::process::getegid().as_raw());
    }
}
