//! gRPC health (`grpc.health.v1`): what kubelet asks.
//!
//! `Readiness`: the router runs and its source can be read (and, by option, a gateway router is Up); `Egress`: a gateway
//! router is Up; `NSPCli`: the source, by the name that it had in the frontend; the empty name: as `Readiness`. Losing the
//! source makes the pod unready; announcing and forwarding go on. Another name is answered as the protocol has it: `Check`
//! fails with `NOT_FOUND`, `Watch` says `SERVICE_UNKNOWN` and stays open.

use std::io;
use std::net::SocketAddr;

use martlet_api::readiness::Families;
use tokio::sync::{mpsc, watch};
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tracing::error;

/// What health is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vital {
    /// An Intent is in force, and the router is not on its way out.
    pub running: bool,
    /// The source can be read.
    pub source_reached: bool,
    /// Which family has a gateway router that is Up.
    pub connectivity: Families,
}

/// The services and whether they serve.
pub fn services(vital: Vital, needs_egress: bool) -> [(&'static str, bool); 4] {
    let egress = vital.connectivity.ipv4 || vital.connectivity.ipv6;
    let ready = vital.running && vital.source_reached && (egress || !needs_egress);
    [("", ready), ("Readiness", ready), ("Egress", egress), ("NSPCli", vital.source_reached)]
}

/// Serves health on `address` as long as the driver runs.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(address: SocketAddr, vital: watch::Receiver<Vital>, needs_egress: bool) -> io::Result<()> {
    let listener = crate::metrics::listen(address).await?;
    let service = HealthServer::new(Answers { vital, needs_egress });
    tokio::spawn(async move {
        let served = Server::builder().add_service(service).serve_with_incoming(TcpIncoming::from(listener)).await;
        if let Err(error) = served {
            error!(%error, "health is no longer served");
        }
    });
    Ok(())
}

/// The service itself. `tonic_health` has one, but it refuses to watch a name that it does not know.
#[derive(Clone, Debug)]
struct Answers {
    vital: watch::Receiver<Vital>,
    needs_egress: bool,
}

impl Answers {
    /// What is said of the service `name` now.
    fn status(&mut self, name: &str) -> ServingStatus {
        let vital = *self.vital.borrow_and_update();
        match services(vital, self.needs_egress).into_iter().find(|(known, _)| *known == name) {
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
impl Health for Answers {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let name = request.into_inner().service;
        match self.clone().status(&name) {
            ServingStatus::ServiceUnknown => {
                Err(Status::not_found(format!("no service {name:?}: accepted: Readiness, Egress, NSPCli, or empty")))
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
    use super::*;

    #[test]
    fn readiness_needs_the_source_and_egress_only_if_asked_to() {
        let up = Families { ipv4: false, ipv6: true };
        let all = Vital { running: true, source_reached: true, connectivity: up };
        let serves = |vital, needs_egress, name: &str| {
            services(vital, needs_egress).into_iter().find(|(of, _)| *of == name).unwrap().1
        };
        assert!(serves(all, true, "Readiness") && serves(all, true, "Egress") && serves(all, true, "NSPCli"));
        let alone = Vital { connectivity: Families::default(), ..all };
        assert!(serves(alone, false, "Readiness") && !serves(alone, true, "Readiness"));
        assert!(!serves(alone, false, "Egress"));
        let blind = Vital { source_reached: false, ..all };
        assert!(
            !serves(blind, false, "Readiness") && !serves(blind, false, "NSPCli") && serves(blind, false, "Egress")
        );
        assert!(!serves(Vital { running: false, ..all }, false, "Readiness"));
    }

    #[tokio::test]
    async fn kubelet_is_answered_and_an_unknown_name_is_unknown() {
        use tonic_health::pb::health_client::HealthClient;

        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (sender, vital) = watch::channel(Vital::default());
        serve(free, vital, false).await.unwrap();
        let endpoint = tonic::transport::Channel::from_shared(format!("http://{free}")).unwrap();
        let mut client = HealthClient::new(endpoint.connect().await.unwrap());
        let request = |name: &str| HealthCheckRequest { service: name.into() };
        let status = client.check(request("Readiness")).await.unwrap().into_inner().status();
        assert_eq!(status.as_str_name(), "NOT_SERVING");
        sender.send_replace(Vital { running: true, source_reached: true, ..Vital::default() });
        while client.check(request("Readiness")).await.unwrap().into_inner().status().as_str_name() != "SERVING" {
            tokio::task::yield_now().await;
        }
        for alias in ["", "NSPCli"] {
            assert_eq!(client.check(request(alias)).await.unwrap().into_inner().status().as_str_name(), "SERVING");
        }
        let unknown = client.check(request("Nobody")).await.unwrap_err();
        assert_eq!(unknown.code(), tonic::Code::NotFound, "{unknown}");
        let mut unknown = client.watch(request("Nobody")).await.unwrap().into_inner();
        assert_eq!(unknown.message().await.unwrap().unwrap().status().as_str_name(), "SERVICE_UNKNOWN");
    }

    #[tokio::test]
    async fn who_watches_hears_each_change_once() {
        use tonic_health::pb::health_client::HealthClient;

        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (sender, vital) = watch::channel(Vital::default());
        serve(free, vital, false).await.unwrap();
        let endpoint = tonic::transport::Channel::from_shared(format!("http://{free}")).unwrap();
        let mut client = HealthClient::new(endpoint.connect().await.unwrap());
        let egress = HealthCheckRequest { service: "Egress".into() };
        let mut heard = client.watch(egress).await.unwrap().into_inner();
        assert_eq!(heard.message().await.unwrap().unwrap().status().as_str_name(), "NOT_SERVING");
        // Nothing changes for Egress.
        sender.send_replace(Vital { running: true, ..Vital::default() });
        sender.send_replace(Vital { connectivity: Families { ipv4: true, ipv6: false }, ..Vital::default() });
        assert_eq!(heard.message().await.unwrap().unwrap().status().as_str_name(), "SERVING");
        drop(sender);
        assert_eq!(heard.message().await.unwrap(), None, "the driver has ended");
    }
}
