//! The Service `kubernetes`: there from the start, and made again.

use serde_json::{Value, json};

use crate::harness::*;

/// Address of the service, its target port, the endpoint that is there.
type Shown = (Value, Value, Value);

/// An error while the service has a selector, which is never its own.
async fn shown(server: &mut Server) -> Result<Shown, String> {
    let service = server.get("service", "kubernetes").await;
    let service = service.map_err(|error| error.to_string())?;
    if let Some(selector) = service["spec"].get("selector") {
        return Err(format!("selector: {selector}"));
    }
    let slice = server.get("endpointslice", "kubernetes").await;
    let slice = slice.map_err(|error| error.to_string())?;
    Ok((
        service["spec"]["clusterIP"].clone(),
        service["spec"]["ports"][0]["targetPort"].clone(),
        slice["endpoints"][0]["addresses"].clone(),
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_control_plane_is_a_service() {
    let mut server = server_with("advertise_address = \"192.0.2.1\"").await;
    let port = server.running().address.port();
    let expected = (json!("10.96.0.1"), json!(port), json!(["192.0.2.1"]));
    assert_eq!(shown(&mut server).await, Ok(expected.clone()));

    // Deleted and changed: as before after a while.
    server.delete("service", "kubernetes").await;
    let elsewhere = json!({"endpoints": [{"addresses": ["192.0.2.9"]}]});
    let patched = server.patch("endpointslice", "kubernetes", elsewhere).await;
    assert_eq!(patched["endpoints"][0]["addresses"], json!(["192.0.2.9"]));
    again(&mut server, &expected).await;
    let selector = json!({"spec": {"selector": {"app": "web"}}});
    server.patch("service", "kubernetes", selector).await;
    server.delete("endpointslice", "kubernetes").await;
    again(&mut server, &expected).await;

    // At another address, and not to be reached at all.
    server
        .restart_with("advertise_address = \"192.0.2.2\"")
        .await;
    let port = server.running().address.port();
    let moved = (json!("10.96.0.1"), json!(port), json!(["192.0.2.2"]));
    assert_eq!(shown(&mut server).await, Ok(moved));
}

async fn again(server: &mut Server, expected: &Shown) {
    eventually("the service is there again", async || {
        let seen = shown(server).await;
        if seen.as_ref() == Ok(expected) {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        }
    })
    .await;
}

/// A user's service at the address is no reason not to serve; the service comes when the
/// address is free.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_taken_is_waited_for() {
    let mut server = server().await;
    assert!(server.get("service", "kubernetes").await.is_err());
    let mut taken = service("web");
    taken["spec"]["clusterIP"] = json!("10.96.0.1");
    server.apply(&taken).await;
    server
        .restart_with("advertise_address = \"192.0.2.1\"")
        .await;
    assert!(server.get("service", "kubernetes").await.is_err());
    server.delete("service", "web").await;
    let port = server.running().address.port();
    let expected = (json!("10.96.0.1"), json!(port), json!(["192.0.2.1"]));
    again(&mut server, &expected).await;
}
