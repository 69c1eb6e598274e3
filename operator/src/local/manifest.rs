//! The manifest file, read again whenever it changed. What an API server would refuse is refused here.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use quorate_api::{ConsistentCluster, TlsMode, names, unknown_fields};
use quorate_plan::{Identity, Intent, RefusedSpec};
use serde_json::Value;

use super::world::LocalWorld;

const NAMESPACE: &str = "local";

#[derive(Debug)]
pub(super) struct Manifest {
    file: PathBuf,
    known: Option<(String, Intent)>,
}

impl Manifest {
    pub fn new(file: &Path) -> Manifest {
        Manifest { file: file.to_path_buf(), known: None }
    }

    /// Says whether a cluster could be made of it, whoever that would be.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<()> {
        let text =
            std::fs::read_to_string(&self.file).with_context(|| format!("cannot read {}", self.file.display()))?;
        let intent = parse(&text).map(|cluster| {
            let name = cluster.metadata.name.clone().unwrap_or_default();
            let (namespace, uid) = (NAMESPACE.to_owned(), "of-nobody".to_owned());
            intent_of(cluster, &Identity { name, namespace, uid, generation: 1, incarnation: INCARNATION })
        });
        let problems = match intent {
            Err(problems) => problems,
            Ok(Intent::Refused(refused)) => refused.problems,
            Ok(_) => return Ok(()),
        };
        bail!("{} is refused: {}", self.file.display(), problems.join("; "))
    }

    /// What the file asks for now. A file that is not there, or makes no sense, is a refused spec, not an error.
    ///
    /// # Errors
    /// The generation could not be written down.
    pub fn intent(&mut self, world: &LocalWorld) -> Result<Intent> {
        let text = std::fs::read_to_string(&self.file)
            .with_context(|| format!("cannot read {}: put it back", self.file.display()));
        let key = text.as_ref().map_or_else(|error| format!("{error:#}"), Clone::clone);
        if let Some((known, intent)) = &self.known
            && *known == key
        {
            return Ok(intent.clone());
        }
        let parsed = text.map_err(|error| vec![format!("{error:#}")]).and_then(|text| parse(&text));
        let name = parsed.as_ref().ok().and_then(|cluster| cluster.metadata.name.clone());
        let identity = world.identity(NAMESPACE, name.as_deref(), &key)?;
        let intent = parsed.map_or_else(
            |problems| Intent::Refused(RefusedSpec { identity: identity.clone(), problems }),
            |cluster| intent_of(cluster, &identity),
        );
        self.known = Some((key, intent.clone()));
        Ok(intent)
    }
}

fn intent_of(mut cluster: ConsistentCluster, identity: &Identity) -> Intent {
    if cluster.metadata.name.as_deref() != Some(identity.name.as_str()) {
        let problem = format!(
            "metadata.name is {:?}, and this data directory belongs to {:?}; use another --data-dir, or --fresh",
            cluster.metadata.name.unwrap_or_default(),
            identity.name
        );
        return Intent::Refused(RefusedSpec { identity: identity.clone(), problems: vec![problem] });
    }
    let planes = [("client", &cluster.spec.tls.client), ("peer", &cluster.spec.tls.peer)];
    let is_asked = |mode: Option<TlsMode>| mode.is_some_and(|mode| mode != TlsMode::Disabled);
    if let Some((plane, _)) = planes.into_iter().find(|(_, plane)| is_asked(plane.mode)) {
        let problem =
            format!("spec.tls.{plane}.mode: local mode speaks plain text only; set it to Disabled, or leave it out");
        return Intent::Refused(RefusedSpec { identity: identity.clone(), problems: vec![problem] });
    }
    cluster.metadata.uid = Some(identity.uid.clone());
    cluster.metadata.namespace = Some(identity.namespace.clone());
    cluster.metadata.generation = Some(identity.generation);
    Intent::of(&cluster)
}

fn parse(text: &str) -> Result<ConsistentCluster, Vec<String>> {
    let value: Value =
        serde_yaml_ng::from_str(text).map_err(|error| vec![format!("not one YAML document: {error}")])?;
    let (version, kind) = (&value["apiVersion"], &value["kind"]);
    if version != "quorate.dev/v1alpha1" || kind != "ConsistentCluster" {
        return Err(vec![format!(
            "apiVersion and kind are {version} and {kind}; write quorate.dev/v1alpha1 and ConsistentCluster"
        )]);
    }
    let unknown = unknown_fields(&value);
    if !unknown.is_empty() {
        return Err(unknown.into_iter().map(|path| format!("{path} is not a field; correct or remove it")).collect());
    }
    let generate = value["metadata"]["name"].as_str().is_none_or(str::is_empty);
    if generate {
        return Err(vec!["metadata.name is missing; name the cluster".to_owned()]);
    }
    if !value["metadata"]["deletionTimestamp"].is_null() {
        return Err(vec!["metadata.deletionTimestamp is not yours to set; remove it".to_owned()]);
    }
    serde_json::from_value(value).map_err(|error| vec![format!("spec: {error}")])
}

/// The incarnation local clusters are born with, and keep.
pub(super) const INCARNATION: u64 = names::FIRST_INCARNATION;

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(spec: &str) -> String {
        format!("apiVersion: quorate.dev/v1alpha1\nkind: ConsistentCluster\nmetadata:\n  name: orders\nspec:\n{spec}")
    }

    #[test]
    fn a_plain_manifest_is_taken() {
        let cluster = parse(&manifest("  replicas: 5\n")).unwrap();
        assert_eq!(cluster.spec.replicas, 5);
    }

    #[test]
    fn a_file_is_checked_before_there_is_a_cluster() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("orders.yaml");
        let check = |text: &str| {
            std::fs::write(&file, text).unwrap();
            Manifest::new(&file).check().map_err(|error| error.to_string())
        };
        assert_eq!(check(&manifest("  replicas: 5\n")), Ok(()));
        assert!(check(&manifest("  replica: 5\n")).unwrap_err().contains("spec.replica is not a field"));
        assert!(check(&manifest("  storage: {size: a lot}\n")).unwrap_err().contains("spec.storage.size"));
    }

    #[test]
    fn what_no_api_server_would_take_is_named() {
        let problem = |text: &str| parse(text).unwrap_err().join("; ");
        assert!(problem(&manifest("  replica: 5\n")).contains("spec.replica is not a field"));
        assert!(problem(&manifest("  replicas: three\n")).contains("three"));
        assert!(problem("kind: Pod\n").contains("ConsistentCluster"));
        assert!(problem("a: [").contains("YAML"));
        let nameless = manifest("  replicas: 5\n").replace("name: orders", "labels: {}");
        assert!(problem(&nameless).contains("metadata.name is missing"));
    }
}
