//! A bad way to the API server: a TCP proxy beside it that can cut connections, hold every octet back, or let few through.
//!
//! Only what goes through it suffers; see [`Cluster::client_through`].

use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{API_PORT, Cluster, SERVER};

/// Between two portions of a slow way.
const TICK: Duration = Duration::from_millis(20);

/// How the way is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// As if there were no proxy.
    Open,
    /// Connections stay, and nothing comes through.
    Held,
    /// So many octets come through in a second, in each direction of each connection.
    Slow(usize),
}

/// A proxy. It ends when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    way: watch::Sender<Way>,
    cuts: watch::Sender<()>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Starts one; to be called inside the cluster.
    ///
    /// # Errors
    /// No port is free.
    pub async fn start(_cluster: &Cluster<'_>) -> Result<Self> {
        let listener = TcpListener::bind((SERVER, 0)).await?;
        let port = listener.local_addr()?.port();
        let ((way, ways), (cuts, cut)) = (watch::channel(Way::Open), watch::channel(()));
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect((SERVER, API_PORT)).await else { continue };
                let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
                for (from, to) in [(near_read, far_write), (far_read, near_write)] {
                    let (ways, mut cut) = (ways.clone(), cut.clone());
                    cut.mark_unchanged();
                    tokio::spawn(async move {
                        tokio::select! {
                            biased;
                            _ = cut.changed() => {}
                            () = pump(from, to, ways) => {}
                        }
                    });
                }
            }
        });
        Ok(Self { port, way, cuts, task })
    }

    /// Its port, beside that of the server.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Makes the way as it is told, for connections that there are and that come.
    pub fn set(&self, way: Way) {
        self.way.send_replace(way);
    }

    /// Ends all connections.
    pub fn cut(&self) {
        self.cuts.send_replace(());
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut ways: watch::Receiver<Way>) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let way = *ways.borrow_and_update();
        let room = match way {
            Way::Open => buffer.len(),
            Way::Slow(octets_a_second) => (octets_a_second / 50).clamp(1, buffer.len()),
            Way::Held => {
                if ways.changed().await.is_err() {
                    return;
                }
                continue;
            }
        };
        let Some(portion) = buffer.get_mut(..room) else { return };
        let read = tokio::select! {
            biased;
            changed = ways.changed() => if changed.is_ok() { continue } else { return },
            read = from.read(portion) => read,
        };
        let Ok(length @ 1..) = read else { return };
        if to.write_all(portion.get(..length).unwrap_or_default()).await.is_err() {
            return;
        }
        if way != Way::Open {
            tokio::time::sleep(TICK).await;
        }
    }
}
