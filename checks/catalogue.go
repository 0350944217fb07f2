package checks

import "slices"

// Catalogue lists every check, by family, in the order in which a report has them.
func Catalogue() []Check {
	return slices.Concat(
		hostChecks(),
		kernelChecks(),
		boardChecks(),
		foreignChecks(),
		binaryChecks(),
		unitChecks(),
		processChecks(),
		configChecks(),
		daemonChecks(),
		imageChecks(),
		registryChecks(),
		kubernetesChecks(),
	)
}
