//! Packets that we send in place of an endpoint, with a VIP as source.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Answers a second, at most, of one queue: no amplifier, and no load (RFC 1812 section 4.3.2.8).
const A_SECOND: u32 = 1000;
/// Sockets that are kept open, one a VIP.
const KEPT: usize = 64;
/// "The IP header is in the octets": `IPPROTO_RAW`.
const RAW: i32 = 255;

/// Sends answers.
#[derive(Debug, Default)]
pub(super) struct Sender {
    /// Bound to their VIP, so that the kernel routes as for a packet from the VIP, never by the main table.
    sockets: BTreeMap<IpAddr, Socket>,
    second: Option<(Instant, u32)>,
    /// Said once.
    complained: bool,
}

impl Sender {
    /// Sends a whole IP packet from a VIP to a client. A failure is no more than a lost packet.
    pub(super) fn send(&mut self, vip: IpAddr, client: IpAddr, octets: &[u8]) {
        let (since, sent) = self.second.unwrap_or_else(|| (Instant::now(), 0));
        let (since, sent) = if since.elapsed() > Duration::from_secs(1) { (Instant::now(), 0) } else { (since, sent) };
        if sent >= A_SECOND {
            return;
        }
        self.second = Some((since, sent + 1));
        if let Err(error) = self.try_send(vip, client, octets)
            && !self.complained
        {
            self.complained = true;
            tracing::warn!(%vip, %error, "answers cannot be sent (NET_RAW?)");
        }
    }

    fn try_send(&mut self, vip: IpAddr, client: IpAddr, octets: &[u8]) -> io::Result<()> {
        if !self.sockets.contains_key(&vip) {
            if self.sockets.len() >= KEPT {
                self.sockets.clear();
            }
            self.sockets.insert(vip, open(vip)?);
        }
        let address = SockAddr::from(SocketAddr::new(client, 0));
        self.sockets.get(&vip).map_or(Ok(0), |socket| socket.send_to(octets, &address)).map(drop)
    }
}

fn open(vip: IpAddr) -> io::Result<Socket> {
    let domain = if vip.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(RAW)))?;
    // The VIP is no address of ours.
    match vip {
        IpAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
        IpAddr::V6(_) => socket.set_freebind_v6(true)?,
    }
    socket.bind(&SockAddr::from(SocketAddr::new(vip, 0)))?;
    // Of this protocol it receives nothing; and it never waits.
    socket.set_nonblocking(true)?;
    Ok(socket)
}
