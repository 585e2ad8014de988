//! The application behind a VIP: it says its name on TCP and UDP, and echoes.
//!
//! TCP: on accept it says `<name>\n`, then answers every line `x\n` with `<name> x\n`. UDP: it answers `x` with `<name> x`.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

/// What an application serves.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// What it calls itself.
    #[arg(long)]
    pub name: String,
    /// An address that it serves; may be given again.
    #[arg(long = "vip", required = true)]
    pub vips: Vec<IpAddr>,
    /// A TCP port; may be given again.
    #[arg(long = "tcp")]
    pub tcp: Vec<u16>,
    /// A UDP port; may be given again.
    #[arg(long = "udp")]
    pub udp: Vec<u16>,
}

/// Serves until it is ended.
///
/// # Errors
/// A socket cannot be opened.
pub async fn serve(options: Options) -> Result<()> {
    let mut tasks = JoinSet::new();
    for vip in &options.vips {
        for port in &options.tcp {
            let address = SocketAddr::new(*vip, *port);
            let listener = TcpListener::bind(address).await.with_context(|| format!("listen on TCP {address}"))?;
            tasks.spawn(serve_tcp(listener, options.name.clone()));
        }
        for port in &options.udp {
            let address = SocketAddr::new(*vip, *port);
            let socket = UdpSocket::bind(address).await.with_context(|| format!("open UDP {address}"))?;
            tasks.spawn(serve_udp(socket, options.name.clone()));
        }
    }
    println!("{} serves", options.name);
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

async fn serve_tcp(listener: TcpListener, name: String) -> Result<()> {
    loop {
        // One that was reset before it was accepted is no reason to end.
        if let Ok((stream, _)) = listener.accept().await {
            let name = name.clone();
            tokio::spawn(async move {
                // The client went: nobody is left to tell.
                let _ = converse(stream, &name).await;
            });
        }
    }
}

async fn converse(mut stream: TcpStream, name: &str) -> Result<()> {
    stream.set_nodelay(true)?;
    let (reader, mut writer) = stream.split();
    writer.write_all(format!("{name}\n").as_bytes()).await?;
    let mut lines = BufReader::new(reader).lines();
    while let Some(line) = lines.next_line().await? {
        writer.write_all(format!("{name} {line}\n").as_bytes()).await?;
    }
    Ok(())
}

async fn serve_udp(socket: UdpSocket, name: String) -> Result<()> {
    let mut buffer = [0; 2048];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
        let mut answer = format!("{name} ").into_bytes();
        answer.extend_from_slice(buffer.get(..length).unwrap_or_default());
        // No route back at the moment: the client asks again.
        let _ = socket.send_to(&answer, from).await;
    }
}
