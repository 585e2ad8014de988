//! `grpc.health.v1`: the process lives (the service without a name), and it is ready (service `Readiness`) while the API server talks to it.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::transport::server::TcpIncoming;
use tonic_health::ServingStatus;

/// The service that a readiness probe asks for.
pub const READINESS: &str = "Readiness";

/// What is served.
#[derive(Clone, Debug)]
pub struct Health {
    ready: Arc<watch::Sender<bool>>,
}

impl Default for Health {
    fn default() -> Self {
        Self { ready: Arc::new(watch::channel(false).0) }
    }
}

impl Health {
    /// Whether the readiness probe succeeds.
    pub fn ready(&self, ready: bool) {
        self.ready.send_if_modified(|before| std::mem::replace(before, ready) != ready);
    }
}

/// Serves until the tasks are dropped.
///
/// # Errors
/// The address cannot be bound.
pub async fn serve(address: SocketAddr, health: Health, tasks: &mut JoinSet<()>) -> Result<()> {
    let (reporter, service) = tonic_health::server::health_reporter();
    let incoming = TcpIncoming::from(TcpListener::bind(address).await?);
    tasks.spawn(async move {
        if let Err(error) = tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await
        {
            tracing::error!(%error, "health is no longer served");
        }
    });
    tasks.spawn(async move {
        let mut ready = health.ready.subscribe();
        loop {
            let status = if *ready.borrow_and_update() { ServingStatus::Serving } else { ServingStatus::NotServing };
            reporter.set_service_status(READINESS, status).await;
            if ready.changed().await.is_err() {
                return;
            }
        }
    });
    Ok(())
}
