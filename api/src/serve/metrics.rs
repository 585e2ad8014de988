//! A page of metrics for Prometheus, on a port of its own.
//!
//! Just enough of HTTP for a scrape. What stands on the page, its process knows; it is made when it is asked for.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tracing::warn;

/// How long a scrape may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest request, octets.
const MAX_REQUEST: usize = 16 * 1024;

/// Listens on `address`; where it is any address and IPv6 is left out, on any IPv4 address.
///
/// # Errors
/// When the address cannot be listened on.
pub(super) async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(_) if address.is_ipv6() && address.ip().is_unspecified() => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        result => result,
    }
}

/// Serves `GET /metrics` on `address` until the runtime ends. `page` gives the page, or nothing if its process has ended.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve<F>(address: SocketAddr, page: impl Fn() -> F + Clone + Send + Sync + 'static) -> io::Result<()>
where
    F: Future<Output = Option<String>> + Send + 'static,
{
    let listener = listen(address).await?;
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let page = page.clone();
                    tokio::spawn(async move { tokio::time::timeout(PATIENCE, scrape(stream, page)).await });
                }
                Err(error) => {
                    warn!(%error, "the metrics port does not accept");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    });
    Ok(())
}

async fn scrape<F: Future<Output = Option<String>>>(mut stream: TcpStream, page: impl Fn() -> F) -> io::Result<()> {
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < MAX_REQUEST {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            break;
        }
        request.extend_from_slice(buffer.get(..count).unwrap_or_default());
    }
    let is_ours = request.starts_with(b"GET /metrics ") || request.starts_with(b"GET /metrics?");
    let (code, body) = if is_ours {
        match page().await {
            Some(page) => ("200 OK", page),
            None => ("503 Service Unavailable", "the process has ended\n".into()),
        }
    } else {
        ("404 Not Found", "try /metrics\n".into())
    };
    let head = format!(
        "HTTP/1.1 {code}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn prometheus_is_answered_and_others_are_shown_the_way() {
        for (page, code) in [(Some("up 1\n"), "200 OK"), (None, "503 Service Unavailable")] {
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            serve(free, move || async move { page.map(str::to_owned) }).await.unwrap();
            let answer = get(free, "/metrics").await;
            let body = page.unwrap_or("the process has ended\n");
            assert!(answer.starts_with(&format!("HTTP/1.1 {code}\r\n")) && answer.ends_with(body), "{answer}");
            assert!(get(free, "/metrics?name=up").await.starts_with(&format!("HTTP/1.1 {code}\r\n")));
            let answer = get(free, "/").await;
            assert!(answer.starts_with("HTTP/1.1 404 ") && answer.ends_with("try /metrics\n"), "{answer}");
        }
    }
}
