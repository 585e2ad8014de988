//! gRPC health (`grpc.health.v1`): what kubelet asks.
//!
//! `Readiness`: the router runs and its source can be read (and, by option, a gateway router is Up); `Egress`: a gateway
//! router is Up; `NSPCli`: the source, by the name that it had in the frontend; the empty name: the process lives. Losing the
//! source makes the pod unready; announcing and forwarding go on, and a liveness probe, which asks for the empty name, must
//! not end them.

use std::io;
use std::net::SocketAddr;

use martlet_api::readiness::Families;
use tokio::sync::watch;

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
    [("", true), ("Readiness", ready), ("Egress", egress), ("NSPCli", vital.source_reached)]
}

/// Serves health on `address` as long as the driver runs.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(address: SocketAddr, vital: watch::Receiver<Vital>, needs_egress: bool) -> io::Result<()> {
    let services = move |vital: &Vital| services(*vital, needs_egress).to_vec();
    tokio::spawn(martlet_api::serve::health::serve(address, vital, services).await?);
    Ok(())
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
        assert!(serves(blind, true, ""), "a probe of liveness does not kill a router that has lost its source");
        assert!(!serves(Vital { running: false, ..all }, false, "Readiness"));
    }

    #[tokio::test]
    async fn kubelet_is_answered_as_things_change() {
        use tonic_health::pb::HealthCheckRequest;
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
    }
}
