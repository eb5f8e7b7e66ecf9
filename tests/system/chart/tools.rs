//! Helm, kubectl and kubernetes-validate, run as programs; the cases in `ci/`.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// The directory of the chart.
pub(crate) fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("helm/aspia-relay")
}

/// The stdout of a program that succeeded, or the error output of one that failed.
pub(crate) type Outcome = Result<String, String>;

/// Runs a program, without which the test cannot run.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Outcome {
    // An empty home: nothing that Helm finds in or leaves in one may matter.
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(program);
    command.args(arguments);
    for name in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME", "KUBECONFIG"] {
        command.env(name, home.path().join(name));
    }
    let Ok(output) = command.output() else {
        relay_lab::cannot_run(format!("{program} is missing; .ci/install installs it"));
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(text(&output.stderr) + &text(&output.stdout))
    }
}

/// Renders the chart as a release called `aspia-relay` in the namespace `relays`.
pub(crate) fn template(arguments: &[&str]) -> Outcome {
    let chart = chart();
    template_of(chart.to_str().unwrap(), arguments)
}

/// Renders the chart in a directory or a package.
pub(crate) fn template_of(chart: &str, arguments: &[&str]) -> Outcome {
    let mut all = vec!["template", "aspia-relay", chart, "--namespace", "relays"];
    all.extend(arguments);
    run("helm", &all)
}

/// The documents of a YAML text.
pub(crate) fn documents(yaml: &str) -> Vec<Value> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(yaml).unwrap();
    documents.into_iter().filter(|document| !document.is_null()).collect()
}

/// A case in `ci/`: its name, and the objects that the chart renders for it.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) objects: Vec<Value>,
}

impl Case {
    /// The only object of a kind and of a component.
    pub(crate) fn only(&self, kind: &str) -> &Value {
        let mut found = self.all(kind);
        let object = found.next().unwrap_or_else(|| panic!("{}: no {kind}", self.name));
        assert!(found.next().is_none(), "{}: several {kind}", self.name);
        object
    }

    /// All objects of a kind.
    pub(crate) fn all(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.objects.iter().filter(move |object| object["kind"] == kind)
    }

    /// The relay's workload: a `DaemonSet` or a `StatefulSet`.
    pub(crate) fn workload(&self) -> &Value {
        self.workload_of("relay").unwrap_or_else(|| panic!("{}: no workload", self.name))
    }

    /// The descriptor store's workload, if there is one.
    pub(crate) fn fd_store(&self) -> Option<&Value> {
        self.workload_of("fd-store")
    }

    fn workload_of(&self, component: &str) -> Option<&Value> {
        let mut all = self.all("DaemonSet").chain(self.all("StatefulSet")).filter(|object| {
            object["metadata"]["labels"]["app.kubernetes.io/component"] == component
        });
        let workload = all.next();
        assert!(all.next().is_none(), "{}: several workloads of {component}", self.name);
        workload
    }

    /// The spec of the relay's pods.
    pub(crate) fn relay(&self) -> &Value {
        &self.workload()["spec"]["template"]["spec"]
    }

    /// The spec of the test's pod.
    pub(crate) fn doctor(&self) -> &Value {
        &self.only("Pod")["spec"]
    }
}

/// The files in `ci/`.
pub(crate) fn values_of_cases() -> Vec<PathBuf> {
    let files = std::fs::read_dir(chart().join("ci")).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 12, "{files:?}");
    files
}

/// All cases, rendered.
pub(crate) fn cases() -> Vec<Case> {
    values_of_cases()
        .iter()
        .map(|file| {
            let rendered = template(&["--values", file.to_str().unwrap()]);
            let name = file.file_stem().unwrap().to_str().unwrap().strip_suffix("-values").unwrap();
            let yaml = rendered.unwrap_or_else(|error| panic!("{name}: {error}"));
            Case { name: name.to_owned(), objects: documents(&yaml) }
        })
        .collect()
}

/// The case called `name`.
pub(crate) fn case(name: &str) -> Case {
    let found = cases().into_iter().find(|case| case.name == name);
    found.unwrap_or_else(|| panic!("there is no ci/{name}-values.yaml"))
}
