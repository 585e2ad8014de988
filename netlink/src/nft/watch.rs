//! Whether somebody else had a hand in our tables: a flushed rule set must not go unnoticed.
//!
//! It knows no more than the names of the tables; what to do about it is the caller's.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;

use netlink_packet_core::NlasIterator;
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use tokio::io::unix::AsyncFd;

use crate::{datagram, filter, sys};

/// The group that hears of each change.
const GROUP_NFTABLES: u32 = 7;
/// The largest datagram that the kernel sends.
const DATAGRAM_MAX: usize = 65536;
/// Hints wait in this much kernel memory; should it not do, that is a hint as well.
const RECEIVE_OCTETS: i32 = 1 << 20;
/// The headers of netlink and of netfilter, octets.
const HEADERS: usize = 16 + 4;
/// The type "new generation", which ends a batch and names no table; as octets, subsystem last.
const NEW_GENERATION: [u8; 2] = 0x0a0f_u16.to_ne_bytes();
/// One hint stands for so many more that wait behind it: of a flushed table the kernel tells each rule and element.
const AT_ONCE: usize = 1024;
/// In all other messages the first attribute is the name of the table.
const ATTRIBUTE_TABLE: u16 = 1;

/// Watches tables.
#[derive(Debug)]
pub struct Watch {
    socket: AsyncFd<Socket>,
    tables: Vec<String>,
}

impl Watch {
    /// Watches what others than the socket with this port do to `tables`.
    pub(super) fn open(tables: &[&str], ours: u32) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        socket.set_non_blocking(true)?;
        sys::set_buffers(socket.as_fd(), RECEIVE_OCTETS)?;
        filter::drop_messages_of(&socket, ours)?;
        socket.add_membership(GROUP_NFTABLES)?;
        Ok(Self { socket: sys::watch(socket)?, tables: tables.iter().map(|name| (*name).to_owned()).collect() })
    }

    /// Waits until another than our [`Connection`](super::Connection) changed one of the tables, or may have. Safe to drop at
    /// any time (`select!`). Should the socket break, it says so in the log and never returns.
    pub async fn changed(&mut self) {
        loop {
            let read = match self.socket.readable().await {
                Ok(mut ready) => {
                    let read = self.read();
                    if matches!(read, Ok(None)) {
                        ready.clear_ready();
                    }
                    read
                }
                Err(error) => Err(error),
            };
            match read {
                Ok(Some(true)) => {
                    // What waits is of the past as well.
                    for _ in 0..AT_ONCE {
                        if !matches!(self.read(), Ok(Some(_))) {
                            break;
                        }
                    }
                    return;
                }
                Ok(Some(false)) => tokio::task::yield_now().await,
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(%error, tables = ?self.tables, "changes of nftables are no longer seen");
                    return std::future::pending().await;
                }
            }
        }
    }

    /// Whether the next datagram is about our tables; `None`: none waits.
    fn read(&self) -> io::Result<Option<bool>> {
        let mut datagram = Vec::with_capacity(DATAGRAM_MAX);
        match self.socket.get_ref().recv(&mut datagram, 0) {
            Ok(_) => Ok(Some(datagram::messages(&datagram).any(|message| concerns(message, &self.tables)))),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            // Too much to hear: who knows.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(Some(true)),
            Err(error) => Err(error),
        }
    }
}

fn concerns(message: &[u8], tables: &[String]) -> bool {
    if message.get(4..6) == Some(&NEW_GENERATION) {
        return false;
    }
    let mut attributes = NlasIterator::new(message.get(HEADERS..).unwrap_or_default()).flatten();
    let name = attributes.find(|attribute| attribute.kind() == ATTRIBUTE_TABLE);
    let name = name.as_ref().and_then(|name| name.value().strip_suffix(&[0]));
    tables.iter().any(|table| name == Some(table.as_bytes()))
}
