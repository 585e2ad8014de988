//! Does what the plan says, and reports what became of each object. Knows nothing of why.

use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, ResourceExt as _};

use crate::FIELD_MANAGER;
use crate::plan::Action;
use crate::watch::{self, Change};
use crate::world::Rights;

/// Requests that may be under way at once.
const AT_ONCE: usize = 8;
/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What became of the actions.
#[derive(Debug, Default)]
pub struct Done {
    /// What the server answered: to be known before the watches tell it.
    pub changes: Vec<Change>,
    /// Actions that failed, and why.
    pub failures: Vec<String>,
    /// One of them failed because we may not do it.
    pub forbidden: bool,
}

/// Does all actions of a plan, those of one kind at a time.
pub async fn act(client: &Client, namespace: &str, actions: Vec<Action>) -> Done {
    let mut done = Done::default();
    let mut results = futures::stream::iter(actions)
        .map(|action| async move {
            // A server that takes a request and says nothing must not hold up the others for ever.
            let result = match tokio::time::timeout(PATIENCE, one(client, namespace, &action)).await {
                Ok(result) => result.map_err(|error| {
                    let forbidden = matches!(&error, kube::Error::Api(status) if status.code == 403);
                    (error.to_string(), forbidden)
                }),
                Err(_) => Err((format!("no answer within {} s", PATIENCE.as_secs()), false)),
            };
            (action, result)
        })
        .buffered(AT_ONCE);
    while let Some((action, result)) = results.next().await {
        let (kind, name) = action.of();
        match result {
            Ok(change) => done.changes.extend(change),
            Err((error, forbidden)) => {
                done.forbidden |= forbidden;
                done.failures.push(format!("{} {name}: {error}", kind.name()));
            }
        }
    }
    done
}

async fn one(client: &Client, namespace: &str, action: &Action) -> kube::Result<Option<Change>> {
    let (kind, name) = action.of();
    let api = watch::api(client, kind, namespace);
    let apply = PatchParams::apply(FIELD_MANAGER).force();
    let object = match action {
        Action::Create(_, _, body) => {
            let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
            let object: DynamicObject = serde_json::from_value(body.clone()).map_err(kube::Error::SerdeError)?;
            api.create(&params, &object).await?
        }
        Action::Apply(_, _, body) => api.patch(name, &apply, &Patch::Apply(body)).await?,
        Action::Status(_, _, body) => {
            // Of a Pod only the two gates are ours: a manager of its own keeps them apart from everything else.
            api.patch_status(name, &apply, &Patch::Apply(body)).await?
        }
        Action::Delete(_, _, uid) => {
            let preconditions = Preconditions { uid: Some(uid.clone()), resource_version: None };
            let params = DeleteParams::background().preconditions(preconditions);
            return match api.delete(name, &params).await {
                Ok(_) => Ok(Some(Change::Gone(kind, namespace.to_owned(), name.to_owned()))),
                // It is gone, or another of its name came: the watch tells.
                Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(None),
                Err(error) => Err(error),
            };
        }
    };
    debug_assert_eq!(object.name_any(), name);
    Ok(Some(Change::Put(kind, watch::plain(kind, object))))
}

/// What a right costs if it is missing, for the log.
struct Extra {
    verbs: &'static [(&'static str, &'static str, &'static str, bool)],
    cost: &'static str,
    set: fn(&mut Rights),
}

/// Group, resource (with its subresource after a slash), verb, whether in the namespace.
const EXTRAS: [Extra; 9] = [
    Extra {
        verbs: &[("meridio.experiment.gateway.api.poc", "l34routes/status", "patch", true)],
        cost: "L34Routes have no status",
        set: |rights| rights.route_status = true,
    },
    Extra {
        verbs: &[
            ("meridio.experiment.gateway.api.poc", "gatewayrouters", "list", true),
            ("meridio.experiment.gateway.api.poc", "gatewayrouters", "watch", true),
            ("meridio.experiment.gateway.api.poc", "gatewayrouters/status", "patch", true),
        ],
        cost: "GatewayRouters have no status",
        set: |rights| rights.routers = true,
    },
    Extra {
        verbs: &[
            ("meridio.experiment.gateway.api.poc", "routerstates", "list", true),
            ("meridio.experiment.gateway.api.poc", "routerstates", "watch", true),
        ],
        cost: "sessions are in no status, pods have no readiness gates",
        set: |rights| rights.states = true,
    },
    Extra {
        verbs: &[("", "pods/status", "patch", true)],
        cost: "pods have no readiness gates",
        set: |rights| rights.gates = true,
    },
    Extra {
        verbs: &[("", "configmaps", "list", true), ("", "configmaps", "watch", true)],
        cost: "a Gateway with parametersRef is not accepted",
        set: |rights| rights.config_maps = true,
    },
    Extra {
        verbs: &[
            ("policy", "poddisruptionbudgets", "list", true),
            ("policy", "poddisruptionbudgets", "watch", true),
            ("policy", "poddisruptionbudgets", "create", true),
            ("policy", "poddisruptionbudgets", "patch", true),
            ("policy", "poddisruptionbudgets", "delete", true),
        ],
        cost: "no PodDisruptionBudget is made",
        set: |rights| rights.budgets = true,
    },
    Extra {
        verbs: &[
            ("gateway.networking.k8s.io", "gatewayclasses", "list", false),
            ("gateway.networking.k8s.io", "gatewayclasses", "watch", false),
            ("gateway.networking.k8s.io", "gatewayclasses/status", "patch", false),
        ],
        cost: "the name of the class alone decides",
        set: |rights| rights.classes = true,
    },
    Extra {
        verbs: &[("events.k8s.io", "events", "create", true), ("events.k8s.io", "events", "patch", true)],
        cost: "no Events are told",
        set: |rights| rights.events = true,
    },
    Extra {
        verbs: &[
            ("coordination.k8s.io", "leases", "get", true),
            ("coordination.k8s.io", "leases", "create", true),
            ("coordination.k8s.io", "leases", "update", true),
        ],
        cost: "no leader is elected: run one replica only",
        set: |rights| rights.leases = true,
    },
];

/// What we may do, and a line for each thing that we may not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What we may do.
    pub rights: Rights,
    /// What is missing, and what it costs.
    missing: Vec<(String, &'static str)>,
}

impl Answer {
    /// Logs what is missing.
    pub fn tell(&self) {
        for (missing, cost) in &self.missing {
            tracing::warn!(missing, "without this right {cost}");
        }
    }
}

/// Asks the server what we may do.
///
/// # Errors
/// The server does not answer.
pub async fn rights(client: &Client, namespace: &str) -> kube::Result<Answer> {
    let mut answer = Answer { rights: Rights::BASE, missing: Vec::new() };
    for extra in &EXTRAS {
        let mut missing = Vec::new();
        for (group, resource, verb, namespaced) in extra.verbs {
            let namespace = namespaced.then_some(namespace);
            if !may(client, group, resource, verb, namespace).await? {
                missing.push(format!("{verb} {resource}"));
            }
        }
        if missing.is_empty() {
            (extra.set)(&mut answer.rights);
        } else {
            answer.missing.push((missing.join(", "), extra.cost));
        }
    }
    Ok(answer)
}

async fn may(client: &Client, group: &str, resource: &str, verb: &str, namespace: Option<&str>) -> kube::Result<bool> {
    let (resource, subresource) = resource.split_once('/').map_or((resource, None), |(r, s)| (r, Some(s.to_owned())));
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                group: Some(group.to_owned()),
                resource: Some(resource.to_owned()),
                subresource,
                verb: Some(verb.to_owned()),
                namespace: namespace.map(str::to_owned),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let answer = Api::all(client.clone()).create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}
