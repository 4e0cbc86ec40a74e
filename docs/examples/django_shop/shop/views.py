"""Nothing here knows of replicas."""

from django import forms
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render

from django_shop.shop.models import Product

NewProduct = forms.modelform_factory(Product, fields=("name", "price"))


@login_required
def products(request: HttpRequest) -> HttpResponse:
    """List the latest products; POST makes one."""
    form = NewProduct(request.POST or None)
    if request.method == "POST" and form.is_valid():
        return redirect("product", pk=form.save().pk)
    return render(request, "shop/products.html", {"products": Product.objects.order_by("-pk")[:20], "form": form})


@login_required
def product(request: HttpRequest, pk: int) -> HttpResponse:
    """Show a product."""
    return render(request, "shop/product.html", {"product": get_object_or_404(Product, pk=pk)})
