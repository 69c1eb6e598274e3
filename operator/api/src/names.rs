//! Names, labels and annotations of owned objects, and the token that keeps members of different clusters apart.
//!
//! A name is never an identity: destructive calls go by UID and member id. Names only have to be fresh and readable.

/// Label on every owned object: UID of the ConsistentCluster.
pub const LABEL_CLUSTER_UID: &str = "quorate.dev/cluster-uid";
/// Label on every owned object: name of the ConsistentCluster.
pub const LABEL_CLUSTER: &str = "quorate.dev/cluster";
/// Label on records, pods and volumes. The Service of a member selects its pod by it, too, and a pod that ends loses it.
pub const LABEL_INCARNATION: &str = "quorate.dev/incarnation";
/// Label on pods and volumes: the record's name.
pub const LABEL_MEMBER: &str = "quorate.dev/member";
/// Label on records and pods that count for the disruption budget; a retiring member loses it first.
pub const LABEL_VOTER: &str = "quorate.dev/voter";
pub const LABEL_MANAGED_BY: &str = "app.kubernetes.io/managed-by";
pub const MANAGED_BY: &str = "quorate";

/// Annotation on records: the member's id, hexadecimal.
pub const ANNOTATION_MEMBER_ID: &str = "quorate.dev/member-id";
/// Annotation on records and pods: hash of the template.
pub const ANNOTATION_TEMPLATE_HASH: &str = "quorate.dev/template-hash";
/// Annotation on records: how the pod starts, `seed` or `member`.
pub const ANNOTATION_START: &str = "quorate.dev/start";
/// Annotation on records: the retirement mark.
pub const ANNOTATION_RETIRING: &str = "quorate.dev/retiring";
/// Annotation on volumes: UID of the record the volume was made for.
pub const ANNOTATION_RECORD_UID: &str = "quorate.dev/record-uid";
/// Annotation on the peer Service: the cluster's id, hexadecimal, once *bootstrapped* is durable.
pub const ANNOTATION_BOOTSTRAPPED: &str = "quorate.dev/bootstrapped";
/// Annotation on the shared objects: hash of what was applied.
pub const ANNOTATION_OBJECTS_HASH: &str = "quorate.dev/objects-hash";

/// Annotation on the peer Service and the NetworkPolicy: the number of the defaults that were in force when the cluster was founded (2 is TLS
/// and a NetworkPolicy, 3 a request of CPU as well). What a spec leaves open means what it meant then, so that a newer operator changes nobody.
pub const ANNOTATION_DEFAULTS: &str = "quorate.dev/defaults";
/// Annotation on the ConsistentCluster: SHA-256 of the authority that is to be exchanged, as `quorate.dev/issuer` of Secrets names it.
pub const ANNOTATION_ROTATE_AUTHORITY: &str = "quorate.dev/rotate-authority";
/// Annotation on pods: what they speak with clients and with each other, such as `Required/Preferred`.
pub const ANNOTATION_TLS: &str = "quorate.dev/tls";
/// Annotation on the ConsistentCluster: `status.planHash` of the plan a person allows.
pub const ANNOTATION_APPROVE: &str = "quorate.dev/approve";

/// Finalizer on records: a member leaves the configuration before its record goes.
pub const FINALIZER_LEAVE: &str = "quorate.dev/leave-before-delete";
/// Finalizer on the ConsistentCluster.
pub const FINALIZER_CLUSTER: &str = "quorate.dev/cluster";

/// Characters of a member's suffix. No vowels and no look-alikes, so that no word and no misreading comes out.
const SUFFIX_ALPHABET: &[u8] = b"bcdfghjkmnpqrstvwxz2456789";
const SUFFIX_CHARS: usize = 5;

/// The incarnation a cluster is born with. Only a reviewed recovery or a restore raises it.
pub const FIRST_INCARNATION: u64 = 1;

/// A number that belongs to this cluster alone, from which its members' names follow.
pub fn seed(cluster_uid: &str) -> u64 {
    // FNV-1a: stable across releases, which the standard hasher does not promise.
    cluster_uid
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Name of a new member: `orders-b7xk2`. Equal arguments give equal names.
pub fn member(cluster: &str, seed: u64, config_index: u64, attempt: u64) -> String {
    let mut left = mix(seed ^ mix(config_index ^ mix(attempt)));
    let mut name = format!("{cluster}-");
    for _ in 0..SUFFIX_CHARS {
        let count = SUFFIX_ALPHABET.len() as u64;
        name.push(char::from(SUFFIX_ALPHABET[usize::try_from(left % count).expect("below 26")]));
        left /= count;
    }
    name
}

/// Says whether a member's name is one this operator could have given.
pub fn is_member_of(cluster: &str, name: &str) -> bool {
    name.strip_prefix(cluster)
        .and_then(|rest| rest.strip_prefix('-'))
        .is_some_and(|suffix| suffix.len() == SUFFIX_CHARS && suffix.bytes().all(|b| SUFFIX_ALPHABET.contains(&b)))
}

/// The finalizer of splitmix64: every input bit reaches every output bit.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Token that members of one cluster and incarnation share; checked at start, at joining and between peers.
pub fn token(cluster_uid: &str, incarnation: u64) -> String {
    format!("{cluster_uid}-{incarnation}")
}

/// Headless Service of the members' peer listeners, published before they are ready.
pub fn peer_service(cluster: &str) -> String {
    format!("{cluster}-peer")
}
/// Service of clients.
pub fn client_service(cluster: &str) -> String {
    cluster.to_owned()
}
/// Service without selector whose endpoint is the leader that serves, or nothing.
pub fn leader_service(cluster: &str) -> String {
    format!("{cluster}-leader")
}
pub fn budget(cluster: &str) -> String {
    cluster.to_owned()
}
/// Secret of the cluster's certificate authority; nobody mounts it.
pub fn authority_secret(cluster: &str) -> String {
    format!("{cluster}-tls-ca")
}
/// Secret that the operator shows to members.
pub fn admin_secret(cluster: &str) -> String {
    format!("{cluster}-admin-tls")
}
/// Secret for clients to mount.
pub fn client_secret(cluster: &str) -> String {
    format!("{cluster}-client-tls")
}
/// Secret that a record's pod mounts.
pub fn member_secret(record: &str) -> String {
    format!("{record}-tls")
}
/// Certificate of cert-manager, and the Secret it is filled into, for a record's peers.
pub fn peer_certificate(record: &str) -> String {
    format!("{record}-peer-tls")
}
/// Certificate of cert-manager, and the Secret it is filled into, for what a record shows to clients.
pub fn server_certificate(record: &str) -> String {
    format!("{record}-server-tls")
}
pub fn network_policy(cluster: &str) -> String {
    cluster.to_owned()
}
/// The pod of a record's StatefulSet.
pub fn pod(record: &str) -> String {
    format!("{record}-0")
}
/// The volume claim of a record.
pub fn volume(record: &str) -> String {
    format!("{record}-data")
}
/// The record whose volume has this name.
pub fn record_of_volume(volume: &str) -> &str {
    volume.strip_suffix("-data").unwrap_or(volume)
}
/// Label selector of the members' pods.
pub fn selector(cluster_uid: &str) -> String {
    format!("{LABEL_CLUSTER_UID}={cluster_uid},{LABEL_MANAGED_BY}={MANAGED_BY}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_repeat_for_equal_arguments_and_differ_for_others() {
        let seed = seed("2f1c");
        let name = member("orders", seed, 7, 0);
        assert_eq!(name, member("orders", seed, 7, 0));
        assert_ne!(name, member("orders", seed, 8, 0));
        assert_ne!(name, member("orders", seed, 7, 1));
        assert!(is_member_of("orders", &name), "{name}");
    }

    #[test]
    fn a_foreign_name_is_not_ours() {
        for name in ["orders", "orders-", "orders-abcde", "orders-b7xk", "orders-b7xk22", "order-b7xk2", "x"] {
            assert!(!is_member_of("orders", name), "{name}");
        }
        assert!(is_member_of("orders", "orders-b7xk2"));
    }

    #[test]
    fn the_longest_cluster_name_leaves_room_for_every_object() {
        let cluster = "c".repeat(crate::spec::NAME_BYTES_MAX);
        let record = member(&cluster, 1, 1, 1);
        // A StatefulSet's revision label adds eleven characters to its name.
        assert!(record.len() + 11 <= 63);
        assert!(pod(&record).len() <= 63 && volume(&record).len() <= 63 && leader_service(&cluster).len() <= 63);
    }
}
