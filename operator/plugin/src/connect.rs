//! The way to the API server, and the cluster a command is about. Errors say what to do.

use anyhow::{Context, Result, bail};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use quorate_api::{ConsistentCluster, names};

use crate::args::ConnectArgs;

/// A client and the namespace commands are about.
#[derive(Clone)]
pub struct Connection {
    pub client: Client,
    pub namespace: String,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

/// A cluster with the records and pods that are its own.
#[derive(Debug, Clone)]
pub struct Found {
    pub cluster: ConsistentCluster,
    pub records: Vec<StatefulSet>,
    pub pods: Vec<Pod>,
}

impl Connection {
    /// # Errors
    /// There is no kubeconfig, or no such context in it.
    pub async fn open(args: &ConnectArgs) -> Result<Connection> {
        let options = KubeConfigOptions { context: args.context.clone(), ..KubeConfigOptions::default() };
        let config = match &args.kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path)
                    .with_context(|| format!("--kubeconfig {}: cannot be read", path.display()))?;
                Config::from_custom_kubeconfig(file, &options).await
            }
            None if args.context.is_some() => Config::from_kubeconfig(&options).await,
            None => {
                // In a pod there is no file, and none is needed.
                let config = Config::infer().await.context("no kubeconfig; set KUBECONFIG or give --kubeconfig")?;
                return Connection::with(config, args);
            }
        };
        Connection::with(config.context("the kubeconfig leads to no cluster; see `kubectl config get-contexts`")?, args)
    }

    fn with(config: Config, args: &ConnectArgs) -> Result<Connection> {
        let namespace = args.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        Ok(Connection { client: Client::try_from(config)?, namespace })
    }

    pub fn clusters(&self) -> Api<ConsistentCluster> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// # Errors
    /// There is none of that name; the error names those there are.
    pub async fn cluster(&self, name: &str) -> Result<ConsistentCluster> {
        match self.clusters().get_opt(name).await.map_err(|e| explain(&e, "read ConsistentClusters"))? {
            Some(cluster) => Ok(cluster),
            None => bail!(missing(name, &self.namespace, &self.list().await?)),
        }
    }

    /// # Errors
    /// They cannot be listed.
    pub async fn list(&self) -> Result<Vec<ConsistentCluster>> {
        let listed = self.clusters().list(&ListParams::default()).await;
        Ok(listed.map_err(|e| explain(&e, "list ConsistentClusters"))?.items)
    }

    /// A cluster, its records and its pods.
    ///
    /// # Errors
    /// One of them cannot be read.
    pub async fn found(&self, name: &str) -> Result<Found> {
        let cluster = self.cluster(name).await?;
        let own = ListParams::default().labels(&names::selector(cluster.metadata.uid.as_deref().unwrap_or_default()));
        let sets = Api::<StatefulSet>::namespaced(self.client.clone(), &self.namespace);
        let records = sets.list(&own).await.map_err(|e| explain(&e, "list StatefulSets"))?.items;
        let pods = Api::<Pod>::namespaced(self.client.clone(), &self.namespace);
        let pods = pods.list(&own).await.map_err(|e| explain(&e, "list pods"))?.items;
        Ok(Found { cluster, records, pods })
    }
}

fn missing(name: &str, namespace: &str, others: &[ConsistentCluster]) -> String {
    let known: Vec<_> = others.iter().filter_map(|c| c.metadata.name.as_deref()).collect();
    if known.is_empty() {
        format!("no ConsistentCluster {name:?} in namespace {namespace:?}, and no other one; give --namespace")
    } else {
        format!("no ConsistentCluster {name:?} in namespace {namespace:?}; there is {}", known.join(", "))
    }
}

/// What an API server's refusal means and what helps.
pub fn explain(error: &kube::Error, what: &str) -> anyhow::Error {
    match error {
        kube::Error::Api(status) if status.code == 404 => anyhow::anyhow!(
            "cannot {what}: the API server does not know the kind. Install the chart: helm install quorate charts/quorate"
        ),
        kube::Error::Api(status) if status.code == 403 => {
            anyhow::anyhow!("cannot {what}: {}. Ask for the right, or use another --context", status.message)
        }
        kube::Error::Api(status) if status.code == 401 => {
            anyhow::anyhow!("cannot {what}: the API server does not accept these credentials; log in again")
        }
        kube::Error::Api(status) => anyhow::anyhow!("cannot {what}: {} ({})", status.message, status.code),
        other => anyhow::anyhow!("cannot {what}: {other}. Is the API server of this context up?"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_cluster_is_told_with_those_there_are() {
        let other = ConsistentCluster::new("orders", quorate_api::ConsistentClusterSpec::default());
        assert!(missing("order", "shop", &[other]).contains("there is orders"));
        assert!(missing("order", "shop", &[]).contains("--namespace"));
    }
}
