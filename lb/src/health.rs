//! gRPC health (`grpc.health.v1`): what kubelet asks.
//!
//! `Readiness`: all queue threads answer, the source has said what exists and can be read, and we are not about to end.
//! `Engine` (and the empty name, for which a liveness probe asks): the first of these alone, so that losing the source does
//! not end what forwards. Whether a VIP is ready is not asked here: that is between us and the router.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;

use crate::status::Status;

/// The port, unless told otherwise.
pub const HEALTH_PORT: u16 = 2227;

/// The services and whether they serve.
fn services(status: &Status) -> [(&'static str, bool); 3] {
    let ends = status.readiness.as_ref().is_some_and(|told| told.draining);
    let ready = status.alive && status.source_reached && !ends;
    [("", status.alive), ("Readiness", ready), ("Engine", status.alive)]
}

/// Serves health on `address` until the runtime ends.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(address: SocketAddr, status: watch::Receiver<Arc<Status>>) -> io::Result<()> {
    let services = |status: &Arc<Status>| services(status).to_vec();
    tokio::spawn(martlet_api::serve::health::serve(address, status, services).await?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use martlet_api::readiness::{Readiness, VERSION};

    use super::*;
    use crate::status::tests::example;

    #[test]
    fn readiness_needs_engine_and_source_and_no_end() {
        let serves = |status: &Status, name: &str| {
            services(status).into_iter().find(|(of, _)| *of == name).map(|(_, serves)| serves).unwrap()
        };
        let all = example();
        assert!(serves(&all, "Readiness") && serves(&all, "") && serves(&all, "Engine"));
        let hung = Status { alive: false, ..all.clone() };
        assert!(!serves(&hung, "Readiness") && !serves(&hung, "Engine"));
        let blind = Status { source_reached: false, ..all.clone() };
        assert!(!serves(&blind, "Readiness") && serves(&blind, "Engine") && serves(&blind, ""));
        let told =
            Readiness { version: VERSION, gateway: "sllb-a".into(), draining: true, vips: [].into_iter().collect() };
        let ends = Status { readiness: Some(told), ..all };
        assert!(!serves(&ends, "Readiness") && serves(&ends, "Engine"));
    }

    #[tokio::test]
    async fn kubelet_is_answered_as_things_change() {
        use tonic_health::pb::HealthCheckRequest;
        use tonic_health::pb::health_client::HealthClient;

        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (sender, status) = watch::channel(Arc::new(Status::default()));
        serve(free, status).await.unwrap();
        let endpoint = tonic::transport::Channel::from_shared(format!("http://{free}")).unwrap();
        let mut client = HealthClient::new(endpoint.connect().await.unwrap());
        let request = || HealthCheckRequest { service: "Readiness".into() };
        let status = client.check(request()).await.unwrap().into_inner().status();
        assert_eq!(status.as_str_name(), "NOT_SERVING");
        sender.send_replace(Arc::new(example()));
        while client.check(request()).await.unwrap().into_inner().status().as_str_name() != "SERVING" {
            tokio::task::yield_now().await;
        }
    }
}
