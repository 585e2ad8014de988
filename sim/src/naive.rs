//! The naive peer as a host of the second world: [`Peer`] over TCP of turmoil-net, in a task of its own. No BFD, no kernel, no
//! driver: what the product's own gateway and the product's pods might misunderstand alike, this one does not.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use turmoil_net::shim::tokio::net::TcpStream;

use crate::hosts::PORT;
use crate::link::Node;
use crate::net::{Accepting, Addresses, Opening, accept, open};
use crate::peer::{Peer, Want};

/// How often it looks at its sockets.
const LOOK: Duration = Duration::from_millis(10);

struct Wire {
    stream: TcpStream,
    out: Vec<u8>,
}

impl Wire {
    /// Sends what can be sent. Whether the connection lives.
    fn flush(&mut self, cx: &mut Context<'_>) -> bool {
        while !self.out.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.out) {
                Poll::Ready(Ok(count)) if count > 0 => drop(self.out.drain(..count)),
                Poll::Ready(_) => return false,
                Poll::Pending => return true,
            }
        }
        true
    }

    /// What has come; `None`: it is over.
    fn read(&mut self, cx: &mut Context<'_>) -> Option<Vec<u8>> {
        let (mut heard, mut octets) = (Vec::new(), [0; 4096]);
        loop {
            let mut buffer = ReadBuf::new(&mut octets);
            match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => heard.extend_from_slice(buffer.filled()),
                Poll::Ready(_) => return None,
                Poll::Pending => return Some(heard),
            }
        }
    }
}

/// A process of it.
struct Process<'a> {
    peer: &'a RefCell<Peer>,
    pods: &'a [Addresses],
    /// Where it listens.
    at: [SocketAddr; 2],
    accepting: [Accepting; 2],
    connecting: Vec<(usize, bool, Opening)>,
    wires: BTreeMap<usize, Wire>,
    next: usize,
}

impl Process<'_> {
    fn open(&mut self, now: u64, stream: TcpStream, pod: usize, ipv4: bool) {
        self.next += 1;
        self.wires.insert(self.next, Wire { stream, out: Vec::new() });
        self.peer.borrow_mut().connected(now, self.next, Node::Pod(pod), ipv4);
    }

    fn look(&mut self, now: u64, cx: &mut Context<'_>) {
        for family in 0..2 {
            while let Poll::Ready((listener, accepted)) = self.accepting[family].as_mut().poll(cx) {
                self.accepting[family] = accept(listener, self.at[family]);
                let Ok((stream, remote)) = accepted else { break };
                let pod = self.pods.iter().position(|pod| pod.contains(&remote.ip()));
                if let Some(pod) = pod {
                    self.open(now, stream, pod, remote.is_ipv4());
                }
            }
        }
        for (pod, ipv4, mut connecting) in std::mem::take(&mut self.connecting) {
            match connecting.as_mut().poll(cx) {
                Poll::Ready(Ok(stream)) => self.open(now, stream, pod, ipv4),
                Poll::Ready(Err(_)) => {}
                Poll::Pending => self.connecting.push((pod, ipv4, connecting)),
            }
        }
        let mut peer = self.peer.borrow_mut();
        self.wires.retain(|id, wire| {
            let heard = wire.read(cx);
            match &heard {
                Some(octets) if !octets.is_empty() => peer.received(now, *id, octets),
                Some(_) => {}
                None => peer.closed(*id),
            }
            heard.is_some()
        });
        peer.tick(now, self.pods.len(), &[true, false], false);
        for want in std::mem::take(&mut peer.wants) {
            match want {
                Want::Send(id, octets) => {
                    if let Some(wire) = self.wires.get_mut(&id) {
                        wire.out.extend(octets);
                    }
                }
                Want::Close(id) => {
                    // Its last words are lost if they cannot be sent now.
                    if let Some(mut wire) = self.wires.remove(&id) {
                        wire.flush(cx);
                    }
                }
                Want::Connect(pod, ipv4) => {
                    let remote = SocketAddr::new(self.pods[pod][usize::from(!ipv4)], PORT);
                    self.connecting.push((pod, ipv4, open(remote)));
                }
            }
        }
        self.wires.retain(|id, wire| {
            let lives = wire.flush(cx);
            if !lives {
                peer.closed(*id);
            }
            lives
        });
    }
}

/// Runs a process of it, in its `life`, on the host with these addresses, beside these pods.
pub async fn run(addresses: Addresses, life: u16, peer: &RefCell<Peer>, pods: &[Addresses]) {
    let began = tokio::time::Instant::now();
    let at = addresses.map(|address: IpAddr| SocketAddr::new(address, PORT + life));
    let accepting = at.map(|at| accept(None, at));
    let mut process = Process { peer, pods, at, accepting, connecting: Vec::new(), wires: BTreeMap::new(), next: 0 };
    loop {
        let now = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        poll_fn(|cx| {
            process.look(now, cx);
            Poll::Ready(())
        })
        .await;
        tokio::time::sleep(LOOK).await;
    }
}
