//! gRPC health (`grpc.health.v1`): what kubelet asks.
//!
//! Which services there are and whether they serve follows from a whole value that its process keeps up to date. A name that
//! is none of theirs is answered as the protocol has it: `Check` fails with `NOT_FOUND`, `Watch` says `SERVICE_UNKNOWN` and
//! stays open.

use std::io;
use std::net::SocketAddr;

use tokio::sync::{mpsc, watch};
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tracing::error;

use super::metrics::listen;

/// The services by name, and whether they serve.
pub type Services = Vec<(&'static str, bool)>;

/// Listens on `address`; health is served as long as the future that it gives is polled.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve<T: Send + Sync + 'static>(
    address: SocketAddr,
    vital: watch::Receiver<T>,
    services: impl Fn(&T) -> Services + Clone + Send + Sync + 'static,
) -> io::Result<impl Future<Output = ()> + Send + 'static> {
    let listener = listen(address).await?;
    let service = HealthServer::new(Answers { vital, services });
    Ok(async move {
        let served = Server::builder().add_service(service).serve_with_incoming(TcpIncoming::from(listener)).await;
        if let Err(error) = served {
            error!(%error, "health is no longer served");
        }
    })
}

/// The service itself. `tonic_health` has one, but it refuses to watch a name that it does not know.
struct Answers<T, F> {
    vital: watch::Receiver<T>,
    services: F,
}

/// By hand: a derived one would ask the same of `T`.
impl<T, F: Clone> Clone for Answers<T, F> {
    fn clone(&self) -> Self {
        Self { vital: self.vital.clone(), services: self.services.clone() }
    }
}

impl<T, F: Fn(&T) -> Services> Answers<T, F> {
    /// What there is now.
    fn services(&mut self) -> Services {
        (self.services)(&self.vital.borrow_and_update())
    }

    /// What is said of the service `name` now.
    fn status(&mut self, name: &str) -> ServingStatus {
        match self.services().into_iter().find(|(known, _)| *known == name) {
            Some((_, true)) => ServingStatus::Serving,
            Some((_, false)) => ServingStatus::NotServing,
            None => ServingStatus::ServiceUnknown,
        }
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl<T, F> Health for Answers<T, F>
where
    T: Send + Sync + 'static,
    F: Fn(&T) -> Services + Clone + Send + Sync + 'static,
{
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let (mut answers, name) = (self.clone(), request.into_inner().service);
        match answers.status(&name) {
            ServingStatus::ServiceUnknown => {
                let known: Vec<_> = answers.services().iter().map(|(known, _)| format!("{known:?}")).collect();
                Err(Status::not_found(format!("no service {name:?}: accepted: {}", known.join(", "))))
            }
            status => Ok(Response::new(response(status))),
        }
    }

    type WatchStream = ReceiverStream<Result<HealthCheckResponse, Status>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (mut answers, name) = (self.clone(), request.into_inner().service);
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut last = None;
            loop {
                let status = answers.status(&name);
                if last.replace(status) != Some(status) && sender.send(Ok(response(status))).await.is_err() {
                    return;
                }
                tokio::select! {
                    biased;
                    () = sender.closed() => return,
                    changed = answers.vital.changed() => if changed.is_err() {
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
    use tonic_health::pb::health_client::HealthClient;

    use super::*;

    /// Two numbers: whether `even` and `big` serve.
    async fn start(vital: watch::Receiver<u32>) -> HealthClient<tonic::transport::Channel> {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let services = |number: &u32| vec![("even", number.is_multiple_of(2)), ("big", *number > 100)];
        tokio::spawn(serve(free, vital, services).await.unwrap());
        let endpoint = tonic::transport::Channel::from_shared(format!("http://{free}")).unwrap();
        HealthClient::new(endpoint.connect().await.unwrap())
    }

    fn request(name: &str) -> HealthCheckRequest {
        HealthCheckRequest { service: name.into() }
    }

    #[tokio::test]
    async fn kubelet_is_answered_and_an_unknown_name_is_unknown() {
        let (sender, vital) = watch::channel(1);
        let mut client = start(vital).await;
        let mut ask = async |name| client.check(request(name)).await.unwrap().into_inner().status();
        assert_eq!(ask("even").await, ServingStatus::NotServing);
        sender.send_replace(102);
        assert_eq!((ask("even").await, ask("big").await), (ServingStatus::Serving, ServingStatus::Serving));
        let unknown = client.check(request("Nobody")).await.unwrap_err();
        assert_eq!(unknown.code(), tonic::Code::NotFound);
        assert_eq!(unknown.message(), "no service \"Nobody\": accepted: \"even\", \"big\"");
        let mut unknown = client.watch(request("Nobody")).await.unwrap().into_inner();
        assert_eq!(unknown.message().await.unwrap().unwrap().status(), ServingStatus::ServiceUnknown);
    }

    #[tokio::test]
    async fn who_watches_hears_each_change_once() {
        let (sender, vital) = watch::channel(1);
        let mut client = start(vital).await;
        let mut heard = client.watch(request("big")).await.unwrap().into_inner();
        assert_eq!(heard.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
        // Nothing changes for the big.
        sender.send_replace(2);
        sender.send_replace(101);
        assert_eq!(heard.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
        drop(sender);
        assert_eq!(heard.message().await.unwrap(), None, "who kept the value has ended");
    }
}
