//! The image that a kind node is made from: the published one where it can be had, else one built here.
//!
//! The built one is Debian with systemd and containerd, Kubernetes from its Go modules, and what kind expects of a node:
//! `/kind/version`, manifests for network and storage, and an entrypoint. Must not start or change a cluster.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::engine::Engine;
use crate::cmd::{cache_dir, root};
use crate::tools::run::{Run, step};
use crate::tools::{self, apt, as_root, content_hash, write};

/// What kind 0.32 runs nodes from if nothing else is said.
const PUBLISHED: &str = "kindest/node:v1.36.1@sha256:3489c7674813ba5d8b1a9977baea8a6e553784dab7b84759d1014dbd78f7ebd5";
/// Whether a registry can be reached is known by then or not worth waiting for.
const PROBE_LIMIT_SECONDS: u64 = 8;
const PULL_LIMIT_SECONDS: u64 = 15 * 60;
const DEBOOTSTRAP_LIMIT_SECONDS: u64 = 15 * 60;
/// Overrides the choice: `local`, `published` or the name of an image.
const CHOICE_VARIABLE: &str = "QUORATE_NODE_IMAGE";

/// What node images built here are called, followed by what they were built from.
const REPOSITORY: &str = "quorate.dev/node";
const DEBIAN_RELEASE: &str = "bookworm";
/// What a node needs beside the base system.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,containerd,runc,containernetworking-plugins,iptables,nftables,iproute2,\
conntrack,kmod,procps,curl,jq,socat,ethtool,openssl,ca-certificates,hostname,mount";
/// Units that wait for hardware or do housekeeping a container has no use for.
const MASKED_UNITS: [&str; 14] = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "console-getty.service",
    "dev-hugepages.mount",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    "getty.target",
    "sys-fs-fuse-connections.mount",
    "systemd-journald-audit.socket",
    "systemd-logind.service",
    "systemd-remount-fs.service",
    "systemd-udevd.service",
    "systemd-update-utmp.service",
];

/// A shell and small tools, for volume helpers and probes: Debian's static busybox in an image of its own.
pub const BUSYBOX: &str = "quorate.dev/busybox:1.35";
const LOCAL_PATH: &str = "quorate.dev/local-path-provisioner:0.0.30";
const ON_PATH: &str = "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// An image that kind can make nodes from.
#[derive(Debug)]
pub struct NodeImage {
    pub name: String,
    /// Built here: with our own network, and without a name server to forward to.
    pub local: bool,
}

/// The node image to use, pulled or built if need be.
pub fn ensure(engine: &Engine) -> Result<NodeImage> {
    let choice = std::env::var(CHOICE_VARIABLE).unwrap_or_default();
    match choice.as_str() {
        "" => {}
        "local" => return local(engine),
        "published" => return published(engine),
        name => return Ok(NodeImage { name: name.to_owned(), local: false }),
    }
    if engine.has_image(&local_name()?) {
        return local(engine);
    }
    if engine.has_image(PUBLISHED) {
        return published(engine);
    }
    let probe =
        engine.docker("asking the registry").args(["manifest", "inspect", PUBLISHED]).limit(PROBE_LIMIT_SECONDS);
    if probe.end().is_ok_and(|ended| ended.success()) {
        return published(engine);
    }
    eprintln!("[kind] no registry has {PUBLISHED} for us: the node image is built here");
    local(engine)
}

fn published(engine: &Engine) -> Result<NodeImage> {
    if !engine.has_image(PUBLISHED) {
        step("kind", &format!("pulling {PUBLISHED}"), || {
            engine.docker("pulling the node image").args(["pull", "-q", PUBLISHED]).limit(PULL_LIMIT_SECONDS).run()
        })?;
    }
    Ok(NodeImage { name: PUBLISHED.to_owned(), local: false })
}

fn local(engine: &Engine) -> Result<NodeImage> {
    let name = local_name()?;
    if !engine.has_image(&name) {
        build(engine, &name)?;
    }
    Ok(NodeImage { name, local: true })
}

/// Named by everything it is made of, so that a change makes a new one.
fn local_name() -> Result<String> {
    let version = tools::kubernetes_version()?;
    // This file is the recipe: packages, masked units, names and what goes where.
    let mut inputs: Vec<Vec<u8>> = vec![include_str!("node_image.rs").into()];
    for folder in ["node", "go/kubernetes", "go/etcd", "go/coredns", "go/local-path"] {
        for path in files_below(&rig().join(folder))? {
            inputs.push(path.strip_prefix(rig()).unwrap_or(&path).display().to_string().into());
            inputs.push(fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
        }
    }
    let hash = content_hash(inputs.iter().map(Vec::as_slice));
    Ok(format!("{REPOSITORY}:{version}-{}", &hash[..12]))
}

fn rig() -> PathBuf {
    root().join("e2e/rig")
}

fn build_dir() -> PathBuf {
    cache_dir().join("build")
}

/// Files below a directory in the order of their paths.
fn files_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut entries = fs::read_dir(dir)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>())
        .with_context(|| format!("cannot list {}", dir.display()))?;
    entries.sort();
    let mut files = Vec::new();
    for path in entries {
        if path.is_dir() {
            files.extend(files_below(&path)?);
        } else {
            files.push(path);
        }
    }
    Ok(files)
}

fn build(engine: &Engine, name: &str) -> Result<()> {
    let bin = tools::kubernetes()?;
    tools::kubectl()?;
    tools::etcd()?;
    tools::coredns()?;
    tools::local_path_provisioner()?;
    let rootfs = root_file_system()?;
    busybox(engine)?;
    let overlay = build_dir().join("overlay");
    fresh_dir(&overlay)?;
    step("kind", "building the images of the control plane", || pod_images(engine, &bin, &rootfs, &overlay))?;
    step("kind", &format!("building the node image {name}"), || {
        lay_overlay(&bin, &overlay)?;
        // Both together in a third tree; links instead of copies keep that cheap.
        let merged = build_dir().join("node");
        let run = |program: &str, args: &[&str], paths: &[&Path]| {
            as_root(program, "laying the node's files together").args(args).args(paths).limit(120).run()
        };
        run("rm", &["-rf"], &[&merged])?;
        run("cp", &["-al"], &[&rootfs, &merged])?;
        run("cp", &["-a", "--no-preserve=ownership", "--remove-destination", "-T"], &[&overlay, &merged])?;
        engine.import(
            name,
            &merged,
            &[
                ON_PATH.to_owned(),
                "ENV container=docker".to_owned(),
                r#"ENTRYPOINT ["/usr/local/bin/entrypoint","/sbin/init"]"#.to_owned(),
            ],
        )?;
        run("rm", &["-rf"], &[&merged])
    })?;
    fs::remove_dir_all(&overlay).with_context(|| format!("cannot remove {}", overlay.display()))
}

/// Removes node images that an earlier state of the rig was built into: more than a gigabyte each.
pub fn remove_others(engine: &Engine, kept: &NodeImage) -> Result<()> {
    let list =
        engine.docker("listing node images").args(["images", "--format", "{{.Repository}}:{{.Tag}}", REPOSITORY]);
    for image in list.output()?.lines().filter(|image| *image != kept.name) {
        // One that a container of somebody's still uses stays.
        engine.docker("removing an old node image").args(["image", "rm", image]).end()?;
    }
    Ok(())
}

/// Debian's base system with what a node needs, in a directory of the cache.
fn root_file_system() -> Result<PathBuf> {
    let hash = content_hash([DEBIAN_RELEASE.as_bytes(), PACKAGES.as_bytes()]);
    let dir = build_dir().join(format!("rootfs-{}", &hash[..12]));
    if dir.exists() {
        return Ok(dir);
    }
    apt(&[("debootstrap", "debootstrap debian-archive-keyring")])?;
    let part = dir.with_extension("part");
    step("kind", &format!("debootstrap {DEBIAN_RELEASE}"), || {
        as_root("rm", "removing an unfinished debootstrap").args(["-rf"]).arg(&part).run()?;
        fs::create_dir_all(build_dir()).context("cannot make the cache's build directory")?;
        as_root("debootstrap", "debootstrap")
            .args(["--variant=minbase", &format!("--include={PACKAGES}"), DEBIAN_RELEASE])
            .arg(&part)
            .limit(DEBOOTSTRAP_LIMIT_SECONDS)
            .run()?;
        // What apt downloaded would be a third of the image.
        let downloads = part.join("var/cache/apt/archives");
        as_root("find", "removing downloaded packages").arg(&downloads).args(["-name", "*.deb", "-delete"]).run()?;
        as_root("mv", "keeping the file system").arg(&part).arg(&dir).run()
    })?;
    Ok(dir)
}

/// Debian's static busybox, taken out of its package: installing it would replace another busybox.
fn busybox_program() -> Result<PathBuf> {
    let path = cache_dir().join("bin").join("busybox");
    if path.exists() {
        return Ok(path);
    }
    let work = build_dir().join("busybox");
    fresh_dir(&work)?;
    let download = Run::new("apt-get", "downloading busybox-static").args(["download", "-q", "busybox-static"]);
    download.dir(&work).limit(120).run()?;
    Run::new("sh", "unpacking busybox-static").args(["-c", "dpkg-deb -x *.deb unpacked"]).dir(&work).run()?;
    copy(&work.join("unpacked/bin/busybox"), &path)?;
    fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
    Ok(path)
}

/// The busybox image in the engine, made if it is not there.
pub fn busybox(engine: &Engine) -> Result<()> {
    if engine.has_image(BUSYBOX) {
        return Ok(());
    }
    step("kind", &format!("building {BUSYBOX}"), || {
        let program = busybox_program()?;
        let applets = Run::new(&program, "asking busybox for its applets").arg("--list").output()?;
        let tree = build_dir().join("tree");
        fresh_dir(&tree)?;
        copy(&program, &tree.join("bin/busybox"))?;
        for applet in applets.lines().filter(|applet| *applet != "busybox") {
            link("busybox", &tree.join("bin").join(applet))?;
        }
        make_tmp(&tree)?;
        engine.import(BUSYBOX, &tree, &["ENV PATH=/bin".to_owned(), r#"CMD ["/bin/sh"]"#.to_owned()])?;
        fs::remove_dir_all(&tree).with_context(|| format!("cannot remove {}", tree.display()))
    })
}

/// The images that kubeadm's manifests name, made of our static programs and put into archives in the overlay.
fn pod_images(engine: &Engine, bin: &Path, rootfs: &Path, overlay: &Path) -> Result<()> {
    let wanted = kubeadm_images(bin)?;
    let named = |part: &str| -> Result<&str> {
        let found = wanted.iter().find(|image| image.contains(&format!("/{part}:")));
        found.map(String::as_str).with_context(|| format!("`kubeadm config images list` names no {part}: {wanted:?}"))
    };
    let mut control_plane = Vec::new();
    for program in ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "etcd"] {
        control_plane.push(program_image(engine, named(program)?, &bin.join(program), &[], None)?);
    }
    let everywhere = [
        program_image(engine, named("coredns")?, &bin.join("coredns"), &[], None)?,
        program_image(engine, LOCAL_PATH, &bin.join("local-path-provisioner"), &[], None)?,
        program_image(engine, named("kube-proxy")?, &bin.join("kube-proxy"), &[], Some(rootfs))?,
        // What holds a pod's namespaces open may be anything that sleeps.
        program_image(engine, named("pause")?, &busybox_program()?, &["sleep", "infinity"], None)?,
        BUSYBOX.to_owned(),
    ];
    let save = |file: &str, images: &[String]| -> Result<()> {
        let path = overlay.join("kind/images").join(file);
        fs::create_dir_all(overlay.join("kind/images")).context("cannot make the overlay's image directory")?;
        engine.docker("saving images").args(["save", "-o"]).arg(&path).args(images).limit(300).run()
    };
    save("control-plane.tar", &control_plane)?;
    save("all.tar", &everywhere)?;
    let used_up = control_plane.iter().chain(&everywhere).filter(|image| *image != BUSYBOX);
    engine.docker("removing images that are in the archives").args(["image", "rm"]).args(used_up).run()
}

/// Names of the images that this version's kubeadm puts into its manifests.
fn kubeadm_images(bin: &Path) -> Result<Vec<String>> {
    let version = format!("--kubernetes-version={}", tools::kubernetes_version()?);
    let list =
        Run::new(bin.join("kubeadm"), "asking kubeadm for its images").args(["config", "images", "list", &version]);
    Ok(list.output()?.lines().map(str::to_owned).collect())
}

/// An image of one static program; with `nft_from`, also of nft and its libraries, which kube-proxy runs.
fn program_image(
    engine: &Engine,
    image: &str,
    program: &Path,
    args: &[&str],
    nft_from: Option<&Path>,
) -> Result<String> {
    let name = program.file_name().and_then(|name| name.to_str()).context("a program has a name")?;
    let tree = build_dir().join("tree");
    fresh_dir(&tree)?;
    copy(program, &tree.join("usr/local/bin").join(name))?;
    make_tmp(&tree)?;
    if let Some(rootfs) = nft_from {
        copy_dynamic(rootfs, "/usr/sbin/nft", &tree)?;
    }
    let words: Vec<String> = std::iter::once(format!("\"/usr/local/bin/{name}\""))
        .chain(args.iter().map(|arg| format!("\"{arg}\"")))
        .collect();
    engine.import(image, &tree, &[ON_PATH.to_owned(), format!("ENTRYPOINT [{}]", words.join(","))])?;
    fs::remove_dir_all(&tree).with_context(|| format!("cannot remove {}", tree.display()))?;
    Ok(image.to_owned())
}

/// Copies a dynamically linked program and its libraries out of a root file system.
fn copy_dynamic(rootfs: &Path, program: &str, tree: &Path) -> Result<()> {
    let libraries =
        as_root("chroot", format!("asking for the libraries of {program}")).arg(rootfs).args(["ldd", program]);
    let libraries = libraries.output()?;
    let paths = libraries.split_whitespace().filter(|word| word.starts_with('/'));
    for path in paths.chain([program]) {
        let relative = path.trim_start_matches('/');
        copy(&rootfs.join(relative), &tree.join(relative))?;
    }
    Ok(())
}

/// Everything that makes the base system a kind node.
fn lay_overlay(bin: &Path, overlay: &Path) -> Result<()> {
    let source = rig().join("node");
    for program in ["kubelet", "kubeadm", "kubectl"] {
        copy(&bin.join(program), &overlay.join("usr/local/bin").join(program))?;
    }
    copy(&source.join("bin/entrypoint"), &overlay.join("usr/local/bin/entrypoint"))?;
    for script in ["kubelet-cgroups", "import-images", "runc", "runc-without-resource-cap"] {
        copy(&source.join("bin").join(script), &overlay.join("usr/local/lib/quorate").join(script))?;
    }
    let units = overlay.join("etc/systemd/system");
    let wanted = units.join("multi-user.target.wants");
    fs::create_dir_all(&wanted).context("cannot make the overlay's unit directory")?;
    for unit in ["containerd.service", "quorate-images.service", "kubelet.service"] {
        copy(&source.join("units").join(unit), &units.join(unit))?;
        link(&format!("/etc/systemd/system/{unit}"), &wanted.join(unit))?;
    }
    link("/lib/systemd/system/multi-user.target", &units.join("default.target"))?;
    for unit in MASKED_UNITS {
        link("/dev/null", &units.join(unit))?;
    }
    fs::create_dir_all(overlay.join("opt/cni")).context("cannot make the overlay's CNI directory")?;
    link("/usr/lib/cni", &overlay.join("opt/cni/bin"))?;
    // On workers nothing makes it, and kubelet complains about that every second.
    fs::create_dir_all(overlay.join("etc/kubernetes/manifests"))
        .context("cannot make the overlay's manifest directory")?;
    let pause = kubeadm_images(bin)?
        .into_iter()
        .find(|image| image.contains("/pause:"))
        .context("kubeadm names no pause image")?;
    let fill = |from: &str, to: &str| -> Result<()> {
        let path = source.join(from);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let text = text.replace("@PAUSE@", &pause).replace("@BUSYBOX@", BUSYBOX).replace("@LOCAL_PATH@", LOCAL_PATH);
        write(&overlay.join(to), text)
    };
    fill("containerd.toml", "etc/containerd/config.toml")?;
    fill("manifests/default-cni.yaml", "kind/manifests/default-cni.yaml")?;
    fill("manifests/default-storage.yaml", "kind/manifests/default-storage.yaml")?;
    write(&overlay.join("kind/version"), tools::kubernetes_version()?)
}

fn link(target: &str, path: &Path) -> Result<()> {
    symlink(target, path).with_context(|| format!("cannot link {}", path.display()))
}

/// Copies a file with its mode, making the directories above it.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    fs::copy(from, to).map(drop).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

/// An empty directory, whatever was there before.
pub fn fresh_dir(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))
}

fn make_tmp(tree: &Path) -> Result<()> {
    let tmp = tree.join("tmp");
    fs::create_dir_all(&tmp).with_context(|| format!("cannot make {}", tmp.display()))?;
    Run::new("chmod", "opening /tmp of an image").arg("1777").arg(&tmp).run()
}
