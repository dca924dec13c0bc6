//! What a pod takes of a node, from what its containers take each (Kubernetes' rule for
//! sidecars, KEP-753). Called by the scheduler (`control-plan`) and by `foil describe node`.

use k8s_openapi::api::core::v1::{Container, PodSpec};

/// The sum of the containers and sidecars; or, if that is more, the most that is taken while
/// an init container runs beside the sidecars before it. For each of the amounts that `of`
/// returns. A pod's overhead is not in it.
pub fn effective<const N: usize>(spec: &PodSpec, of: impl Fn(&Container) -> [u64; N]) -> [u64; N] {
    let mut sum = spec.containers.iter().map(&of).fold([0; N], plus);
    let (mut sidecars, mut most) = ([0; N], [0; N]);
    for init in spec.init_containers.iter().flatten() {
        let one = of(init);
        let together = plus(sidecars, one);
        most = larger(most, together);
        if init.restart_policy.as_deref() == Some("Always") {
            sidecars = together;
            sum = plus(sum, one);
        }
    }
    larger(most, sum)
}

fn plus<const N: usize>(a: [u64; N], b: [u64; N]) -> [u64; N] {
    std::array::from_fn(|at| a[at].saturating_add(b[at]))
}

fn larger<const N: usize>(a: [u64; N], b: [u64; N]) -> [u64; N] {
    std::array::from_fn(|at| a[at].max(b[at]))
}
