//! `grpc.health.v1`: the process lives (the service without a name), and it is ready (service `Readiness`) while the API server
//! talks to it.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use tokio::sync::watch;
use tokio::task::JoinSet;

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
pub async fn serve(address: SocketAddr, health: &Health, tasks: &mut JoinSet<()>) -> Result<()> {
    let services = |ready: &bool| vec![("", true), (READINESS, *ready)];
    tasks.spawn(martlet_api::serve::health::serve(address, health.ready.subscribe(), services).await?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;

    use super::*;

    #[tokio::test]
    async fn it_lives_at_once_and_is_ready_when_told() {
        // A free port: nobody else takes it in the moment between.
        let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let (health, mut tasks) = (Health::default(), JoinSet::new());
        serve(address, &health, &mut tasks).await.unwrap();
        let channel =
            tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        let mut client = HealthClient::new(channel);
        let mut ask = async |service: &str| {
            let answer = client.check(HealthCheckRequest { service: service.to_owned() }).await;
            answer.map(|answer| answer.into_inner().status().as_str_name() == "SERVING")
        };
        assert!(ask("").await.unwrap());
        for ready in [true, false, true] {
            health.ready(ready);
            while ask(READINESS).await.ok() != Some(ready) {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        }
    }
}
