//! The files and variables that a container would get from the kubelet, derived from the spec of a pod without a cluster, so
//! that the relay's own code can check them.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use aspia_relay::config::sources::Sources;
use serde_json::Value;

use super::tools::Case;

/// Name and address of the node that everything runs on.
const NODE: &str = "node-1.example.com";
const HOST_IP: &str = "203.0.113.7";

/// The content of Secrets and ConfigMaps that exist before the installation.
pub(crate) struct Existing {
    certificate: String,
    private_key: String,
}

impl Existing {
    pub(crate) fn new() -> Self {
        let pair = rcgen::generate_simple_self_signed(["relay.example.com".to_owned()]).unwrap();
        Self { certificate: pair.cert.pem(), private_key: pair.signing_key.serialize_pem() }
    }

    /// The content for a mount path. The names of the Secrets do not matter, since users choose them.
    fn content(&self, path: &str) -> String {
        match path {
            "admin-token" | "metrics-token" => "a-token-of-the-user".to_owned(),
            "router.pub" => include_str!("../../vectors/router.pub").to_owned(),
            "tls/tls.crt" | "tls/client-ca.crt" => self.certificate.clone(),
            "tls/tls.key" => self.private_key.clone(),
            "token" | "ca.crt" => String::new(),
            other => panic!("nothing is expected at {other}"),
        }
    }
}

/// The files and variables of the container `name` of a pod, with all paths below `root`.
pub(crate) fn sources(
    case: &Case,
    pod: &Value,
    name: &str,
    existing: &Existing,
    root: &Path,
) -> Sources {
    let containers = pod["containers"].as_array().unwrap();
    let container = containers.iter().find(|container| container["name"] == name).unwrap();
    for mount in container["volumeMounts"].as_array().unwrap() {
        let at = root.join(mount["mountPath"].as_str().unwrap().trim_start_matches('/'));
        let volume = pod["volumes"]
            .as_array()
            .unwrap()
            .iter()
            .find(|volume| volume["name"] == mount["name"])
            .unwrap_or_else(|| panic!("{}: no volume {}", case.name, mount["name"]));
        mount_volume(case, volume, existing, &at);
    }
    let root = root.to_str().unwrap();
    let environment = variables(container).into_iter().map(|(name, value)| {
        let is_path = name.ends_with("_FILE");
        (name, if is_path { format!("{root}{value}") } else { value })
    });
    let relay_json = Path::new(root).join("etc/aspia/relay.json");
    // Paths in it are those of the container.
    let text = std::fs::read_to_string(&relay_json).unwrap();
    std::fs::write(&relay_json, text.replace("\"/run/", &format!("\"{root}/run/"))).unwrap();
    Sources::new(Some(relay_json), environment.collect())
}

fn mount_volume(case: &Case, volume: &Value, existing: &Existing, at: &Path) {
    if let Some(map) = volume["configMap"]["name"].as_str() {
        let Some(object) = case.all("ConfigMap").find(|object| object["metadata"]["name"] == map)
        else {
            return; // One that the user has created, for the trace collector.
        };
        for (name, content) in object["data"].as_object().unwrap() {
            write(&at.join(name), content.as_str().unwrap(), 0o644);
        }
    } else if let Some(sources) = volume["projected"]["sources"].as_array() {
        let mode = u32::try_from(volume["projected"]["defaultMode"].as_u64().unwrap()).unwrap();
        for source in sources {
            let source = source.as_object().unwrap().values().next().unwrap();
            for item in source["items"].as_array().unwrap() {
                let path = item["path"].as_str().unwrap();
                let content =
                    of_the_chart(case, source, item).unwrap_or_else(|| existing.content(path));
                write(&at.join(path), &content, mode);
            }
        }
    } else if volume["emptyDir"].is_object() {
        // The file that the init container writes.
        write(&at.join("peer-address"), "198.51.100.7\n", 0o644);
    } else {
        panic!("{}: what is {volume}?", case.name);
    }
}

/// The content of an item in a Secret that the chart has created, if it is one.
fn of_the_chart(case: &Case, source: &Value, item: &Value) -> Option<String> {
    let secret = case.all("Secret").find(|secret| secret["metadata"]["name"] == source["name"])?;
    let content = secret["stringData"][item["key"].as_str().unwrap()].as_str();
    Some(content.unwrap_or_else(|| panic!("{}: {item} is not in {secret}", case.name)).to_owned())
}

fn write(path: &Path, content: &str, mode: u32) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// The variables, with the references to those above them expanded.
pub(crate) fn variables(container: &Value) -> Vec<(String, String)> {
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    let mut all = Vec::new();
    for variable in container["env"].as_array().unwrap() {
        let name = variable["name"].as_str().unwrap().to_owned();
        let value = match variable["value"].as_str() {
            Some(value) => known.iter().fold(value.to_owned(), |value, (name, of_it)| {
                value.replace(&format!("$({name})"), of_it)
            }),
            None => match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
                Some("spec.nodeName") => NODE.to_owned(),
                Some("status.hostIP") => HOST_IP.to_owned(),
                Some("metadata.name") => "aspia-relay-x7k2p".to_owned(),
                Some("metadata.namespace") => "relays".to_owned(),
                Some(other) => panic!("{name} is {other}, which this test does not know"),
                None => {
                    assert!(variable["valueFrom"]["secretKeyRef"].is_object(), "{variable}");
                    "authorization=Bearer%20abc".to_owned()
                }
            },
        };
        assert!(
            !value.contains("$("),
            "{name} is {value}: a variable that it refers to must come before it"
        );
        known.insert(name.clone(), value.clone());
        all.push((name, value));
    }
    all
}
