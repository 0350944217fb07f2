package main

import "net/http"

// registry is as much of one as a client sees that asks whether there is one:
// https://github.com/opencontainers/distribution-spec, Determining Support.
func registry(address, cert, key string) error {
	http.HandleFunc("/v2/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Docker-Distribution-API-Version", "registry/2.0")
		if r.URL.Path != "/v2/" {
			http.NotFound(w, r)
		}
	})
	return http.ListenAndServeTLS(address, cert, key, nil)
}
