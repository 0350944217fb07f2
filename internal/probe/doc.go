// Package probe asks registries for real what a pull, a resolve or a push of an image would
// ask: the name's addresses, the connection, TLS, the API's root, credentials, the manifest
// and a layer, each as a step with its time and a verdict in plain words.
//
// Who is asked, in which order and with what comes from outside: the package knows neither
// profiles nor hosts.toml. It goes out through a host.Network alone, uploads nothing, and
// what it returns holds no secret: no value of a header, no password and no token, also where
// a server sends one back.
package probe
