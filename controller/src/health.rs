//! `grpc.health.v1`: the process lives (the service without a name), and it is ready (service `Readiness`) while the API server
//! talks to it.
//!
//! `tonic_health` has a service of its own, but it refuses to watch a name that it does not know; the protocol wants the answer
//! `SERVICE_UNKNOWN`, and the stream kept open.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{Health as Service, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

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

    /// What is said of the service `name`, if the controller is `ready` or not.
    fn status(name: &str, ready: bool) -> ServingStatus {
        match name {
            "" => ServingStatus::Serving,
            READINESS if ready => ServingStatus::Serving,
            READINESS => ServingStatus::NotServing,
            _ => ServingStatus::ServiceUnknown,
        }
    }
}

/// Serves until the tasks are dropped.
///
/// # Errors
/// The address cannot be bound.
pub async fn serve(address: SocketAddr, health: Health, tasks: &mut JoinSet<()>) -> Result<()> {
    let incoming = TcpIncoming::from(TcpListener::bind(address).await?);
    let service = HealthServer::new(health);
    tasks.spawn(async move {
        if let Err(error) = tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await
        {
            tracing::error!(%error, "health is no longer served");
        }
    });
    Ok(())
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Service for Health {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let name = request.into_inner().service;
        match Self::status(&name, *self.ready.borrow()) {
            ServingStatus::ServiceUnknown => {
                Err(Status::not_found(format!("no service {name:?}: accepted: {READINESS}, or empty")))
            }
            status => Ok(Response::new(response(status))),
        }
    }

    type WatchStream = ReceiverStream<Result<HealthCheckResponse, Status>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (mut ready, name) = (self.ready.subscribe(), request.into_inner().service);
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut last = None;
            loop {
                let status = Self::status(&name, *ready.borrow_and_update());
                if last.replace(status) != Some(status) && sender.send(Ok(response(status))).await.is_err() {
                    return;
                }
                tokio::select! {
                    biased;
                    () = sender.closed() => return,
                    changed = ready.changed() => if changed.is_err() {
                        return;
                    },
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

#[cfg(test)]
mod tests {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;

    use super::*;

    #[tokio::test]
    async fn it_lives_at_once_and_is_ready_when_told() {
        // A free port: nobody else takes it in the moment between.
        let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let (health, mut tasks) = (Health::default(), JoinSet::new());
        serve(address, health.clone(), &mut tasks).await.unwrap();
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

    #[tokio::test]
    async fn an_unknown_name_is_unknown_and_who_watches_hears_each_change() {
        let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let (health, mut tasks) = (Health::default(), JoinSet::new());
        serve(address, health.clone(), &mut tasks).await.unwrap();
        let channel =
            tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        let mut client = HealthClient::new(channel);
        let request = |name: &str| HealthCheckRequest { service: name.to_owned() };
        assert_eq!(client.check(request("Nobody")).await.unwrap_err().code(), tonic::Code::NotFound);
        let mut unknown = client.watch(request("Nobody")).await.unwrap().into_inner();
        assert_eq!(unknown.message().await.unwrap().unwrap().status().as_str_name(), "SERVICE_UNKNOWN");
        let mut heard = client.watch(request(READINESS)).await.unwrap().into_inner();
        assert_eq!(heard.message().await.unwrap().unwrap().status().as_str_name(), "NOT_SERVING");
        health.ready(true);
        assert_eq!(heard.message().await.unwrap().unwrap().status().as_str_name(), "SERVING");
    }
}
